/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of all signals of this folder. */
#pragma once

#include "socket.h"

enum role {
	ROLE_UNKNOWN,
	ROLE_CLIENT,
	ROLE_SERVER,
};

/* What a record says; enum signal alone cannot tell a start from an end. */
enum tcp_event_kind {
	TCP_EVENT_FAILURE,
	TCP_EVENT_RTT_START,
	TCP_EVENT_RTT_END, /* it recovered */
	TCP_EVENT_RTT_SETTLED, /* it lasted so long that it is the new baseline */
	TCP_EVENT_RETRANSMIT,
};

/* Identifies a peer and, with it, a baseline. */
struct peer_key {
	__u64 cgroup_id;
	__u32 hierarchy;
	__u16 port; /* of the service: the remote one for a client, ours for a server */
	__u16 role;
	__u8 address[16]; /* IPv4 is mapped into IPv6 */
};

struct tcp_event {
	struct head head;
	struct peer_key peer;
	__u8 local_address[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 family;
	__u8 kind; /* enum tcp_event_kind */
	__u8 state; /* that the connection was in */
	__u32 error; /* errno, 0 when the application gave up */
	__u32 rtt_us;
	__u32 baseline_us; /* 0: not learned yet */
	__u32 worst_us;
	__u32 segments; /* how many of its signal this record accounts for */
	__u32 retransmits; /* in the window */
	__u32 total_retransmits; /* of this connection */
	__u32 pad;
	__u64 duration_ns; /* since connect, of the spike, or of the window */
	__u64 bytes_sent; /* and acknowledged */
	__u64 bytes_received;
};

/* Keep the types in the object's BTF, for the Go side. */
const struct tcp_event *unused_tcp_event __attribute__((unused));
const enum role unused_role __attribute__((unused));
const enum tcp_event_kind unused_kind __attribute__((unused));

static __always_inline void peer_key(struct tcp_sock *tp, struct sock *sk, __u32 role,
				     struct peer_key *key)
{
	key->cgroup_id = sock_cgroup(sk);
	key->hierarchy = 0;
	key->role = role;
	key->port = role == ROLE_SERVER ? local_port(tp) :
					  __builtin_bswap16(sk->__sk_common.skc_dport);
	peer_address(sk, (__u32 *)key->address);
}

static __always_inline void fill(struct tcp_event *e, struct sock *sk, struct tcp_sock *tp,
				 const struct peer_key *key, __u32 kind, __u32 state)
{
	e->peer = *key;
	local_address(sk, (__u32 *)e->local_address);
	e->local_port = local_port(tp);
	e->peer_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	e->family = sk->__sk_common.skc_family;
	e->kind = kind;
	e->state = state;
	e->error = 0;
	e->rtt_us = tp->srtt_us >> 3;
	e->baseline_us = 0;
	e->worst_us = 0;
	e->segments = 1;
	e->retransmits = 0;
	e->pad = 0;
	e->total_retransmits = tp->total_retrans;
	e->duration_ns = 0;
	e->bytes_sent = tp->bytes_acked;
	e->bytes_received = tp->bytes_received;
}

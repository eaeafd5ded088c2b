/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whom a socket belongs to. Noted where the process is the current one, at
 * connect(), listen() and the first read after accept(), and looked up when
 * there is something to tell.
 */
#pragma once

#include "event.h"

/*
 * Who dials and since when, and who serves. Every healthy connection pays for this, and what
 * it pays is cache lines: so the table is an array, an entry is half a line,
 * and nobody cleans up. The tag says whether an entry is of this very socket:
 * it is made of the socket's address and the peer's, because a socket that is
 * freed leaves its own address to the next.
 */
struct recent {
	__u32 tag;
	__u32 pid;
	__u64 since_ns; /* connect(), 0 when accepted */
	char comm[COMM_LEN];
};

#define RECENT_BITS 16

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct recent);
	__uint(max_entries, 1 << RECENT_BITS);
} recent SEC(".maps");

/*
 * A connection that lives on, or that sends again. Nobody cleans up here
 * either: the entry is of this connection if it has the same initial sequence
 * number.
 */
struct connection {
	struct owner owner;
	__u64 since_ns; /* connect(), 0 when nobody saw it */
	__u64 sampled_ns;
	__u64 window_ns; /* start of the retransmission window */
	__u32 window_segments; /* sent before it */
	__u32 window_retransmits;
	__u32 role;
	__u32 initial_seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64); /* struct sock * */
	__type(value, struct connection);
	__uint(max_entries, 16384);
} connections SEC(".maps");

struct listener_key {
	__u64 net; /* struct net * */
	__u32 port;
	__u32 address[4]; /* zero: any */
	__u32 pad;
};

struct listener {
	struct owner owner;
	__u64 sk; /* several may share the port */
};

/* Who listens: accepted connections are theirs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct listener_key);
	__type(value, struct listener);
	__uint(max_entries, 4096);
} listeners SEC(".maps");

static __always_inline void listener_key(struct sock *sk, __u16 port, struct listener_key *key)
{
	key->net = (__u64)sk->__sk_common.skc_net.net;
	key->port = port;
	local_address(sk, key->address);
	/* 0.0.0.0 and :: are the same place. */
	if (!key->address[0] && !key->address[1] && !key->address[3])
		key->address[2] = 0;
}

/* listener_of an accepted socket: at its address, else at any. */
static __always_inline struct listener *listener_of(struct sock *sk, __u16 port)
{
	struct listener_key key = {};
	struct listener *l;

	listener_key(sk, port, &key);
	l = bpf_map_lookup_elem(&listeners, &key);
	if (l)
		return l;
	__builtin_memset(key.address, 0, sizeof(key.address));
	return bpf_map_lookup_elem(&listeners, &key);
}

/* place_of a socket in the array of the recent ones, and what must stand there. */
static __always_inline struct recent *place_of(struct sock *sk, __u32 *tag)
{
	__u64 address = 0;
	__u32 slot;

	/* The verifier allows no arithmetic on a pointer that it follows. */
	bpf_probe_read_kernel(&address, sizeof(address), &sk);
	address *= 0x9e3779b97f4a7c15ULL;
	*tag = (__u32)(address >> 16) ^ (__u32)sk->__sk_common.skc_dport << 16;
	if (is_ipv6(sk))
		*tag ^= sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
	else
		*tag ^= sk->__sk_common.skc_daddr;
	slot = address >> (64 - RECENT_BITS);
	return bpf_map_lookup_elem(&recent, &slot);
}

/* noted copies what was noted of this very socket. */
static __always_inline bool noted(struct sock *sk, struct recent *copy)
{
	__u32 tag;
	struct recent *r = place_of(sk, &tag);

	if (!r || r->tag != tag)
		return false;
	*copy = *r;
	barrier();
	/* Another socket may have taken the place meanwhile. */
	return *(volatile __u32 *)&r->tag == tag;
}

/* watched returns the entry of this very connection, or NULL. */
static __always_inline struct connection *watched(struct sock *sk, struct tcp_sock *tp)
{
	__u64 id = (__u64)sk;
	struct connection *c = bpf_map_lookup_elem(&connections, &id);

	return c && c->initial_seq == initial_seq(tp) ? c : NULL;
}

/* Ports from here on are ephemeral by default. */
#define EPHEMERAL 32768

/*
 * identify says which side of the connection this is and whose. It may look at
 * four maps, so it is for sockets that there is something to tell of. Where
 * nobody saw the socket or its listener being made (they are older than the
 * agent) a port tells the service, if only one of the two can be one.
 */
static __noinline void identify(struct sock *sk, const struct connection *c, struct owner *o,
				__u32 *role, __u64 *since_ns)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct recent r = {};
	struct listener *l;

	if (!tp)
		return;
	if (c) {
		*o = c->owner;
		*role = c->role;
		*since_ns = c->since_ns;
		return;
	}
	o->cgroup_id = sock_cgroup(sk);
	o->hierarchy = 0;
	if (noted(sk, &r)) {
		o->pid = r.pid;
		__builtin_memcpy(o->comm, r.comm, COMM_LEN);
		*role = r.since_ns ? ROLE_CLIENT : ROLE_SERVER;
		*since_ns = r.since_ns;
		return;
	}

	__u16 ours = local_port(tp), theirs = __builtin_bswap16(sk->__sk_common.skc_dport);

	l = listener_of(sk, ours);
	if (l) {
		*role = ROLE_SERVER;
		/* Containers of one network namespace may share a port. */
		if (l->owner.cgroup_id == o->cgroup_id) {
			o->pid = l->owner.pid;
			__builtin_memcpy(o->comm, l->owner.comm, COMM_LEN);
		}
	} else if (ours < EPHEMERAL && theirs >= EPHEMERAL) {
		*role = ROLE_SERVER;
	} else if (ours >= EPHEMERAL && theirs < EPHEMERAL) {
		*role = ROLE_CLIENT;
	}
}

/* watch returns the entry of a connection that lives on, made now if need be. */
static __always_inline struct connection *watch(struct sock *sk, struct tcp_sock *tp)
{
	struct connection *c = watched(sk, tp), fresh = {};
	__u64 id = (__u64)sk;

	if (c)
		return c;
	identify(sk, NULL, &fresh.owner, &fresh.role, &fresh.since_ns);
	fresh.initial_seq = initial_seq(tp);
	bpf_map_update_elem(&connections, &id, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&connections, &id);
}

static __always_inline int listening(struct sock *sk)
{
	struct listener_key key = {};
	struct listener l = { .owner.cgroup_id = sock_cgroup(sk),
			      .owner.pid = bpf_get_current_pid_tgid() >> 32,
			      .sk = (__u64)sk };

	listener_key(sk, sk->__sk_common.skc_num, &key);
	bpf_get_current_comm(l.owner.comm, sizeof(l.owner.comm));
	bpf_map_update_elem(&listeners, &key, &l, BPF_ANY);
	return 0;
}

static __always_inline int stopped_listening(struct sock *sk, __u16 port)
{
	struct listener_key key = {};
	struct listener *l;

	listener_key(sk, port, &key);
	l = bpf_map_lookup_elem(&listeners, &key);
	if (l && l->sk == (__u64)sk)
		bpf_map_delete_elem(&listeners, &key);
	return 0;
}

/* note writes down the current process. */
static __always_inline void note(struct recent *r, __u32 tag, __u64 since_ns)
{
	/* The tag goes first and comes last: nobody reads half of each of two. */
	r->tag = 0;
	barrier();
	r->pid = bpf_get_current_pid_tgid() >> 32;
	r->since_ns = since_ns;
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	barrier();
	r->tag = tag;
}

static __always_inline int connecting(struct sock *sk)
{
	__u32 tag;
	struct recent *r = place_of(sk, &tag);

	if (r)
		note(r, tag, bpf_ktime_get_ns());
	return 0;
}

/*
 * serving notes who reads first from an accepted connection: with workers it is
 * not the one who listens. No stable tracepoint runs in accept().
 */
static __always_inline int serving(struct sock *sk, struct tcp_sock *tp)
{
	__u32 tag;
	struct recent *r = place_of(sk, &tag);

	if (r && r->tag != tag && listener_of(sk, local_port(tp)))
		note(r, tag, 0);
	return 0;
}

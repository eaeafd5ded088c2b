/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket says of itself. */
#pragma once

#include "tapio.h"

static __always_inline __u64 sock_cgroup(struct sock *sk)
{
	struct cgroup *cgrp;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgrp = sk->sk_cgrp_data.cgroup;
		if (!cgrp)
			return ROOT_CGROUP;
		return cgrp->kn->id;
	}
	__u64 val = BPF_CORE_READ((struct sock_cgroup_data___val *)&sk->sk_cgrp_data, val);

	if (!val || val & 1)
		return ROOT_CGROUP;
	return BPF_CORE_READ((struct cgroup *)(val & ~3ULL), kn, id);
}

static __always_inline void map_v4(__u32 *to, __be32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = __builtin_bswap32(0xffff);
	to[3] = address;
}

/* Our port. Not skc_num, which is given back before the last change of state. */
static __always_inline __u16 local_port(struct tcp_sock *tp)
{
	return __builtin_bswap16(tp->inet_conn.icsk_inet.inet_sport);
}

static __always_inline bool is_ipv6(struct sock *sk)
{
	/* A kernel without IPv6 has no such addresses in its sockets. */
	return bpf_core_field_exists(sk->__sk_common.skc_v6_daddr) &&
	       sk->__sk_common.skc_family == AF_INET6;
}

static __always_inline void local_address(struct sock *sk, __u32 *to)
{
	if (is_ipv6(sk)) {
		to[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		to[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		to[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		to[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
	} else {
		map_v4(to, sk->__sk_common.skc_rcv_saddr);
	}
}

static __always_inline void peer_address(struct sock *sk, __u32 *to)
{
	if (is_ipv6(sk)) {
		to[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
		to[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
		to[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
		to[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
	} else {
		map_v4(to, sk->__sk_common.skc_daddr);
	}
}

static __always_inline __u32 initial_seq(struct tcp_sock *tp)
{
	return tp->snd_una - (__u32)tp->bytes_acked;
}

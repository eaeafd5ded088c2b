//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TCP: connects that fail and why, connections that the peer resets, and peers
 * that become slow or lossy.
 *
 * Everything hangs on one stable tracepoint, inet_sock_set_state, that runs a
 * few times a connection; tcp_probe and tcp_retransmit_skb only watch the
 * connections that live on. The cause of a failure is what the kernel itself
 * stored in sk_err: the result of the system call tells nothing, because most
 * connects do not block.
 *
 * Apart from CLOSE -> SYN_SENT and -> LISTEN, the current task is whoever was
 * interrupted by the packet. So the process is noted there and kept with the
 * socket.
 *
 * What is normal is learned for each (cgroup, peer address, service port):
 * the ephemeral port is new each time, a baseline for it would never learn.
 */
#include "tapio.h"

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

/*
 * Who dials, and since when. Every healthy connection pays for this, and what
 * it pays is cache lines: so the table is an array, an entry is half a line,
 * and nobody cleans up. The tag says whether an entry is of this very socket:
 * it is made of the socket's address and the peer's, because a socket that is
 * freed leaves its own address to the next.
 */
struct recent {
	__u32 tag;
	__u32 pid;
	__u64 since_ns;
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

/* What is known of a peer. */
struct peer {
	__u64 spike_ns; /* when the spike that is on began, 0: none */
	__u32 baseline_us;
	__u32 samples;
	__u32 last_us;
	__u16 bad; /* samples in a row */
	__u16 good;
	/* What follows is not touched while the peer is well. */
	__u64 bad_ns; /* the last bad sample */
	__u64 bad_sk; /* the connection that gave it, 0 when that one has closed */
	__u64 closed_ns; /* when it closed */
	__u64 burst_ns; /* the last retransmission burst that was told */
	__u32 worst_us;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct peer_key);
	__type(value, struct peer);
	__uint(max_entries, 16384);
} peers SEC(".maps");

#define SECOND 1000000000ULL

/* An unanswered SYN is sent again after one second; an application that gives
 * up earlier than half of it (happy eyeballs, a request cancelled) had no failure. */
const volatile __u64 abandoned_ns = SECOND / 2;

/*
 * A spike is more than twice the baseline and at least this much above it,
 * or more than the absolute limit. Without the floor the scheduler's own noise
 * is a spike on every fast path.
 */
const volatile __u32 rtt_floor_us = 5000;
/*
 * Once data flows, what is measured may be the peer's delayed acknowledgement
 * (40 ms) or the time that its application takes to answer, whichever is less.
 */
const volatile __u32 rtt_live_floor_us = 50000;
const volatile __u32 rtt_limit_us = 500000;
/* A spike that lasts this long has become what is normal. */
const volatile __u64 rtt_normal_ns = 15 * 60 * SECOND;
/* The spike of a peer is over this long after its last connection closed. */
const volatile __u64 rtt_linger_ns = 5 * SECOND;
#define SAMPLES_TO_LEARN 4
#define BAD_TO_START 2
#define GOOD_TO_END 3
/* An EWMA of 1/16: one wild sample moves it by 6 %. */
#define BASELINE_SHIFT 4

/* A burst: five segments in ten seconds and one in twenty sent, or the same
 * segment three times without any answer (1.4 s at the least). */
#define BURST_WINDOW_NS (10 * SECOND)
#define BURST_JUDGE_NS SECOND
#define BURST_RETRANSMITS 5
#define BURST_SHARE 20
#define STALLED_RETRANSMITS 3
/* While a burst goes on it is told again at most once a minute. */
const volatile __u64 burst_repeat_ns = 60 * SECOND;

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

/* dialed copies what was noted of this very socket when it dialed. */
static __always_inline bool dialed(struct sock *sk, struct recent *copy)
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

static __always_inline __u32 initial_seq(struct tcp_sock *tp)
{
	return tp->snd_una - (__u32)tp->bytes_acked;
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
	if (dialed(sk, &r)) {
		o->pid = r.pid;
		__builtin_memcpy(o->comm, r.comm, COMM_LEN);
		*role = ROLE_CLIENT;
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

static __noinline void tell_failure(struct sock *sk, __u32 signal, __u32 state)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 now = bpf_ktime_get_ns(), since = 0;
	struct peer_key key = {};
	struct owner o = {};
	struct tcp_event *e;
	__u32 role = 0;

	if (!tp)
		return;
	identify(sk, watched(sk, tp), &o, &role, &since);
	e = RESERVE(struct tcp_event, signal, 1, &o, now);
	if (!e)
		return;
	peer_key(tp, sk, role, &key);
	fill(e, sk, tp, &key, TCP_EVENT_FAILURE, state);
	e->error = sk->sk_err;
	if (since)
		e->duration_ns = now - since;
	submit(e, signal, 1, now, false);
}

static __always_inline struct peer *peer_of(const struct peer_key *key)
{
	struct peer *p = bpf_map_lookup_elem(&peers, key);

	if (p)
		return p;
	struct peer fresh = {};

	bpf_map_update_elem(&peers, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&peers, key);
}

/* What sample is told of a round trip. */
#define LIVE 1 /* measured on data, not on the handshake */
#define CLOSING 2 /* the last one of its connection */

static __always_inline __u32 floor_of(__u32 flags)
{
	return flags & LIVE ? rtt_live_floor_us : rtt_floor_us;
}

/* A peer whose normal is above the limit is judged by its baseline alone. */
static __always_inline bool above_limit(const struct peer *p, __u32 rtt, __u32 limit)
{
	return rtt > limit && p->baseline_us <= rtt_limit_us;
}

/* over says whether a round-trip time is out of what was learned. */
static __always_inline bool over(const struct peer *p, __u32 rtt, __u32 flags)
{
	if (above_limit(p, rtt, rtt_limit_us))
		return true;
	return p->samples >= SAMPLES_TO_LEARN && rtt > 2 * p->baseline_us &&
	       rtt - p->baseline_us > floor_of(flags);
}

/* back says whether it has returned; half-way is not enough, or a spike at the
 * edge would end and begin with every sample. */
static __always_inline bool back(const struct peer *p, __u32 rtt, __u32 flags)
{
	if (above_limit(p, rtt, rtt_limit_us - rtt_limit_us / 5))
		return false;
	return p->samples < SAMPLES_TO_LEARN || rtt <= p->baseline_us + p->baseline_us / 2 ||
	       rtt - p->baseline_us <= floor_of(flags) / 2;
}

static __always_inline void learn(struct peer *p, __u32 rtt)
{
	__u32 base = p->baseline_us;

	p->bad = 0;
	p->last_us = rtt;
	if (p->samples < SAMPLES_TO_LEARN) {
		p->baseline_us = ((__u64)base * p->samples + rtt) / (p->samples + 1);
		p->samples++;
	} else {
		p->baseline_us = base + (((__s32)(rtt - base)) >> BASELINE_SHIFT);
	}
}

/*
 * judge handles a sample that is bad, or that falls into a spike. Two bad ones
 * in a row start a spike and three good ones end it, of whichever connections
 * to that peer: one event at each end, however many packets and connections.
 */
static __noinline void judge(struct sock *sk, struct peer *p, const struct peer_key *key,
			     const struct connection *c, __u32 flags)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 now = bpf_ktime_get_ns();
	__u32 kind, rtt, role = 0;
	__u64 since, connected = 0;
	struct owner o = {};

	if (!tp)
		return;
	rtt = tp->srtt_us >> 3;
	/* Ended with its last connection: the agent has told it. */
	if (p->spike_ns && !p->bad_sk && now - p->closed_ns > rtt_linger_ns) {
		p->spike_ns = 0;
		p->bad = 0;
		if (!over(p, rtt, flags)) {
			learn(p, rtt);
			goto nothing;
		}
	}
	if (!p->spike_ns) {
		/* The same figure again is not a second measurement. */
		if (rtt != p->last_us)
			p->bad++;
		p->last_us = rtt;
		if (p->bad < BAD_TO_START)
			goto nothing;
		kind = TCP_EVENT_RTT_START;
		since = now;
		p->spike_ns = now;
		p->bad_ns = now;
		p->bad_sk = flags & CLOSING ? 0 : (__u64)sk;
		p->closed_ns = now;
		p->worst_us = rtt;
		p->good = 0;
	} else {
		bool settled = now - p->spike_ns > rtt_normal_ns;

		if (rtt > p->worst_us)
			p->worst_us = rtt;
		if (back(p, rtt, flags)) {
			p->good++;
		} else {
			p->good = 0;
			p->bad_ns = now;
			p->bad_sk = (__u64)sk;
		}
		if (flags & CLOSING && p->bad_sk == (__u64)sk) {
			p->bad_sk = 0;
			p->closed_ns = now;
		}
		if (!settled && p->good < GOOD_TO_END)
			goto nothing;
		kind = settled ? TCP_EVENT_RTT_SETTLED : TCP_EVENT_RTT_END;
		since = p->spike_ns;
		p->spike_ns = 0;
		p->bad = 0;
	}

	identify(sk, c, &o, &role, &connected);
	__u32 base = p->samples >= SAMPLES_TO_LEARN ? p->baseline_us : 0;

	if (kind == TCP_EVENT_RTT_SETTLED) {
		p->baseline_us = rtt;
		p->samples = SAMPLES_TO_LEARN;
	}

	struct tcp_event *e = RESERVE(struct tcp_event, SIGNAL_RTT, 1, &o, now);

	if (!e) {
		/* No end without a start: the next bad sample tries again. */
		if (kind == TCP_EVENT_RTT_START)
			p->spike_ns = 0;
		return;
	}
	fill(e, sk, tp, key, kind, sk->__sk_common.skc_state);
	e->baseline_us = base;
	e->worst_us = p->worst_us;
	e->duration_ns = now - since;
	submit(e, SIGNAL_RTT, 1, now, false);
	return;
nothing:
	normal(SIGNAL_RTT, 1);
}

/* sample takes one smoothed round-trip time: learns from it when it is fine. */
static __always_inline void sample(struct sock *sk, struct tcp_sock *tp, __u32 role,
				   const struct connection *c, __u32 flags)
{
	__u32 rtt = tp->srtt_us >> 3;
	struct peer_key key = {};
	struct peer *p;

	if (!rtt)
		return;
	peer_key(tp, sk, role, &key);
	p = peer_of(&key);
	if (!p)
		return;
	if (p->spike_ns || over(p, rtt, flags)) {
		judge(sk, p, &key, c, flags);
		return;
	}
	learn(p, rtt);
	normal(SIGNAL_RTT, 1);
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

static __always_inline int connecting(struct sock *sk)
{
	__u32 tag;
	struct recent *r = place_of(sk, &tag);

	if (!r)
		return 0;
	/* The tag goes first and comes last: nobody reads half of each of two. */
	r->tag = 0;
	barrier();
	r->pid = bpf_get_current_pid_tgid() >> 32;
	r->since_ns = bpf_ktime_get_ns();
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	barrier();
	r->tag = tag;
	return 0;
}

static __always_inline int established(struct sock *sk, int from)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return 0;
	/* So far below the floor a baseline hardly matters: one in four will do.
	 * The initial sequence number is random, and at hand. */
	if (tp->srtt_us >> 3 < rtt_floor_us / 8 && tp->snd_una & 3)
		return 0;
	sample(sk, tp, from == TCP_SYN_SENT ? ROLE_CLIENT : ROLE_SERVER, NULL, 0);
	return 0;
}

static __noinline void last_sample(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct connection *c;
	struct owner o = {};
	__u64 since = 0;
	__u32 role = 0;

	if (!tp)
		return;
	c = watched(sk, tp);
	identify(sk, c, &o, &role, &since);
	sample(sk, tp, role, c, LIVE | CLOSING);
}

/* Why a connect failed. */
static __always_inline __u32 connect_failure(struct sock *sk, struct tcp_sock *tp)
{
	struct recent r = {};

	switch (sk->sk_err) {
	case ECONNREFUSED:
		return SIGNAL_CONNECT_REFUSED;
	case ETIMEDOUT:
		return SIGNAL_CONNECT_TIMEOUT;
	case ECONNRESET:
		return SIGNAL_CONNECT_RESET;
	case ECONNABORTED:
		return SIGNAL_CONNECT_ABANDONED;
	case 0:
		/* No local port was left, or the application closed it. */
		if (!local_port(tp))
			return SIGNAL_CONNECT_NO_PORT;
		/* With TCP_FASTOPEN_CONNECT nothing may have been sent yet. */
		if (tp->segs_out && dialed(sk, &r) &&
		    bpf_ktime_get_ns() - r.since_ns >= abandoned_ns)
			return SIGNAL_CONNECT_TIMEOUT;
		return SIGNAL_CONNECT_ABANDONED;
	}
	return SIGNAL_CONNECT_UNREACHABLE;
}

/* Why a connection ended, SIGNAL_COUNT when in good order. */
static __always_inline __u32 connection_failure(struct sock *sk, int state)
{
	/* In these two states the application still has the connection. */
	bool open = state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;

	switch (sk->sk_err) {
	case ECONNRESET:
	case EPIPE:
		return open ? SIGNAL_RESET_BY_PEER : SIGNAL_PEER_LOST_LATE;
	case ETIMEDOUT:
		return open ? SIGNAL_PEER_TIMEOUT : SIGNAL_PEER_LOST_LATE;
	case ENETDOWN:
	case ENETUNREACH:
	case EHOSTDOWN:
	case EHOSTUNREACH:
		return open ? SIGNAL_PEER_UNREACHABLE : SIGNAL_PEER_LOST_LATE;
	}
	/* The application itself cut it short: SO_LINGER, unread data. */
	return open ? SIGNAL_RESET_BY_US : SIGNAL_COUNT;
}

static __always_inline int closed(struct sock *sk, int from)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 signal;

	if (!tp || from == TCP_CLOSE || from == TCP_SYN_RECV)
		return 0;
	if (from == TCP_LISTEN)
		return stopped_listening(sk, local_port(tp));
	if (from == TCP_SYN_SENT) {
		signal = connect_failure(sk, tp);
	} else {
		/* Below the floor it cannot be bad, and others teach the baseline. */
		if (tp->srtt_us >> 3 > rtt_live_floor_us)
			last_sample(sk);
		signal = connection_failure(sk, from);
	}
	switch (signal) {
	case SIGNAL_COUNT:
		return 0;
	case SIGNAL_CONNECT_ABANDONED:
	case SIGNAL_RESET_BY_US:
	case SIGNAL_PEER_LOST_LATE:
		normal(signal, 1);
		return 0;
	}
	tell_failure(sk, signal, from);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int from, int to)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (to) {
	case TCP_SYN_SENT:
		return connecting(sk);
	case TCP_ESTABLISHED:
		return established(sk, from);
	case TCP_CLOSE:
		return closed(sk, from);
	case TCP_LISTEN:
		return listening(sk);
	}
	return 0;
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

/*
 * Runs for every packet of an established connection, so two loads must be
 * enough to send nearly all of them away: only an acknowledgement of our own
 * data brings a sample, and only the first one in 256 jiffies (about a second
 * at HZ=250) is looked at. No map is touched before that.
 */
SEC("tp_btf/tcp_probe")
int BPF_PROG(probe, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp || !tp->packets_out)
		return 0;
	if ((__u32)bpf_jiffies64() >> 8 == tp->rcv_tstamp >> 8)
		return 0;

	struct connection *c = watch(sk, tp);
	__u64 now = bpf_ktime_get_ns();

	if (!c || now - c->sampled_ns < SECOND)
		return 0;
	c->sampled_ns = now;
	sample(sk, tp, c->role, c, LIVE);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u16 segments = BPF_CORE_READ((struct tcp_skb_cb *)&skb->cb, tcp_gso_segs);

	if (!tp)
		return 0;
	/* Newer kernels also tell of attempts that sent nothing. */
	if (bpf_core_field_exists(struct trace_event_raw_tcp_retransmit_skb___err, err) &&
	    (int)ctx[2])
		return 0;

	__u32 state = sk->__sk_common.skc_state;

	if (state == TCP_SYN_SENT) {
		/* Told as a failed connect if it comes to that. */
		normal(SIGNAL_RETRANSMIT_SYN, segments);
		return 0;
	}
	/* The application has left: nobody waits for what is lost. */
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT) {
		normal(SIGNAL_RETRANSMIT, segments);
		return 0;
	}

	struct connection *c = watch(sk, tp);
	struct peer_key key = {};
	struct tcp_event *e;
	__u64 now = bpf_ktime_get_ns();
	struct peer *p;

	if (!c)
		goto normal;
	if (now - c->sampled_ns >= SECOND) {
		c->sampled_ns = now;
		sample(sk, tp, c->role, c, LIVE);
	}
	if (now - c->window_ns > BURST_WINDOW_NS) {
		c->window_ns = now;
		c->window_segments = tp->segs_out;
		c->window_retransmits = 0;
	}
	c->window_retransmits += segments;

	__u32 unanswered = tp->inet_conn.icsk_retransmits;
	bool stalled = unanswered >= STALLED_RETRANSMITS;
	bool burst = now - c->window_ns >= BURST_JUDGE_NS &&
		     c->window_retransmits >= BURST_RETRANSMITS &&
		     c->window_retransmits * BURST_SHARE >= tp->segs_out - c->window_segments;

	peer_key(tp, sk, c->role, &key);
	p = peer_of(&key);
	if (!p)
		goto normal;
	if (!burst && !stalled)
		goto normal;
	if (p->burst_ns && now - p->burst_ns < burst_repeat_ns)
		goto normal;

	e = RESERVE(struct tcp_event, SIGNAL_RETRANSMIT, segments, &c->owner, now);
	if (!e)
		return 0;
	p->burst_ns = now;
	fill(e, sk, tp, &key, TCP_EVENT_RETRANSMIT, sk->__sk_common.skc_state);
	e->segments = segments;
	/* Some may be older than the window, or than the agent. */
	e->retransmits = c->window_retransmits > unanswered ? c->window_retransmits : unanswered;
	e->duration_ns = now - c->window_ns;
	submit(e, SIGNAL_RETRANSMIT, segments, now, false);
	return 0;
normal:
	normal(SIGNAL_RETRANSMIT, segments);
	return 0;
}

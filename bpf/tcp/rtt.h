/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Round-trip times: what is normal for a peer, and when it is not
 * (docs/design/spikes.md).
 */
#pragma once

#include "owner.h"

#define SECOND 1000000000ULL

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

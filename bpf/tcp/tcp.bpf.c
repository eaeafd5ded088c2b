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
#include "event.h"
#include "owner.h"
#include "rtt.h"

/* An unanswered SYN is sent again after one second; an application that gives
 * up earlier than half of it (happy eyeballs, a request cancelled) had no failure. */
const volatile __u64 abandoned_ns = SECOND / 2;

/* A burst: five segments in ten seconds and one in twenty sent, or the same
 * segment three times without any answer (1.4 s at the least). */
#define BURST_WINDOW_NS (10 * SECOND)
#define BURST_JUDGE_NS SECOND
#define BURST_RETRANSMITS 5
#define BURST_SHARE 20
#define STALLED_RETRANSMITS 3
/* While a burst goes on it is told again at most once a minute. */
const volatile __u64 burst_repeat_ns = 60 * SECOND;

static __noinline void tell_failure(struct sock *sk, __u32 signal, __u32 state, __u32 error)
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
	e->error = error;
	if (since)
		e->duration_ns = now - since;
	submit(e, signal, 1, now, false);
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
static __always_inline __u32 connect_failure(struct sock *sk, struct tcp_sock *tp,
					     __u32 error)
{
	struct recent r = {};

	switch (error) {
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
		if (tp->segs_out && noted(sk, &r) &&
		    bpf_ktime_get_ns() - r.since_ns >= abandoned_ns)
			return SIGNAL_CONNECT_TIMEOUT;
		return SIGNAL_CONNECT_ABANDONED;
	}
	return SIGNAL_CONNECT_UNREACHABLE;
}

/* Why a connection ended, SIGNAL_COUNT when in good order. */
static __always_inline __u32 connection_failure(int state, __u32 error)
{
	/* In these two states the application still has the connection. */
	bool open = state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;

	switch (error) {
	case EPIPE:
		/* A reset after the peer's FIN: it had ended the connection in good order,
		 * and what we sent since, a farewell of TLS mostly, came too late. */
		return SIGNAL_PEER_LOST_LATE;
	case ECONNRESET:
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
	/* Once: the application may fetch the error, and so clear it, meanwhile. */
	__u32 signal, error = *(volatile int *)&sk->sk_err;

	if (!tp || from == TCP_CLOSE || from == TCP_SYN_RECV)
		return 0;
	if (from == TCP_LISTEN)
		return stopped_listening(sk, local_port(tp));
	if (from == TCP_SYN_SENT) {
		signal = connect_failure(sk, tp, error);
	} else {
		/* Below the floor it cannot be bad, and others teach the baseline. */
		if (tp->srtt_us >> 3 > rtt_live_floor_us)
			last_sample(sk);
		signal = connection_failure(from, error);
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
	tell_failure(sk, signal, from, error);
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

/*
 * Runs for every read. The kernel moves rcvq_space.seq on with every round trip
 * of reading, so this looks at the first reads only.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(received, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp || tp->rcvq_space.seq != tp->rcv_nxt - (__u32)tp->bytes_received)
		return 0;
	return serving(sk, tp);
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What all signals share: the head of a record, the one ring buffer, the
 * counters and the rate limit. The maps of this page are created once and
 * given to every object, so that a node has one of each.
 *
 * The accounting of every signal is exact: seen = kept + suppressed + lost.
 * A decision is made before space is reserved: what is not worth sending
 * costs two additions and no memory.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define COMM_LEN 16

/* One line of the accounting. The Go side names them in the same order. */
enum signal {
	SIGNAL_CONNECT_REFUSED,
	SIGNAL_CONNECT_TIMEOUT,
	SIGNAL_CONNECT_UNREACHABLE,
	SIGNAL_CONNECT_RESET,
	SIGNAL_CONNECT_NO_PORT,
	SIGNAL_CONNECT_ABANDONED,
	SIGNAL_RESET_BY_PEER,
	SIGNAL_RESET_BY_US,
	SIGNAL_PEER_TIMEOUT,
	SIGNAL_PEER_UNREACHABLE,
	SIGNAL_PEER_LOST_LATE,
	SIGNAL_RTT,
	SIGNAL_RETRANSMIT,
	SIGNAL_RETRANSMIT_SYN,
	SIGNAL_EXIT_CODE,
	SIGNAL_EXIT_SIGNAL,
	SIGNAL_EXIT_STOPPED,
	SIGNAL_EXIT_OOM,
	SIGNAL_OOM_KILL,
	SIGNAL_CGROUP,
	SIGNAL_COUNT,
};

struct counter {
	__u64 seen;
	__u64 kept;
	__u64 normal; /* suppressed: not an anomaly */
	__u64 limited; /* suppressed: the cgroup had its share */
	__u64 lost; /* the ring buffer was full */
};

/* The head of every record. */
struct head {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup_id; /* of the process or socket */
	__u32 hierarchy; /* of cgroup_id: 0 is cgroup v2 */
	__u32 signal; /* enum signal */
	__u32 suppressed; /* by the rate limit, since the last one of this cgroup */
	__u32 pid; /* process id, 0 when unknown */
	char comm[COMM_LEN];
};

/* Who a socket or an event belongs to. */
struct owner {
	__u64 cgroup_id;
	__u32 hierarchy;
	__u32 pid;
	char comm[COMM_LEN];
};

#define RING_BYTES (1 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, SIGNAL_COUNT);
} counters SEC(".maps");

/* When the reader was woken last. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} woken SEC(".maps");

struct limit_key {
	__u64 cgroup_id;
	__u32 hierarchy;
	__u32 what; /* enum signal, or a hash of what is counted apart */
};

struct limit {
	__u64 due_ns; /* the theoretical arrival time of the GCRA */
	__u32 suppressed; /* all that were held back */
	__u32 told; /* of these, how many a record has mentioned */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct limit_key);
	__type(value, struct limit);
	__uint(max_entries, 4096);
} limits SEC(".maps");

/* Records of one signal that one cgroup may send: a burst, then one an interval. */
const volatile __u64 limit_interval_ns = 100000000;
const volatile __u32 limit_burst = 50;

/*
 * A per-CPU slot and still atomic: a softirq on the same CPU may interrupt a
 * program between its load and its store.
 */
#define COUNT(signal, field, n)                                              \
	({                                                                   \
		__u32 __key = (signal);                                      \
		struct counter *__c = bpf_map_lookup_elem(&counters, &__key); \
		if (__c)                                                     \
			__sync_fetch_and_add(&__c->field, (n));              \
	})

/* Counts what was seen and is not an anomaly. */
static __always_inline void normal(__u32 signal, __u64 n)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &signal);

	if (!c)
		return;
	__sync_fetch_and_add(&c->seen, n);
	__sync_fetch_and_add(&c->normal, n);
}

/* allowed applies the generic cell rate algorithm. Two CPUs may both take the
 * last place: the limit is a courtesy, the counters are exact. */
static __always_inline bool allowed(const struct limit_key *key, __u64 now, __u64 interval,
				    __u32 burst, __u32 *suppressed)
{
	struct limit *l = bpf_map_lookup_elem(&limits, key);

	if (!l) {
		struct limit fresh = { .due_ns = now + interval };

		bpf_map_update_elem(&limits, key, &fresh, BPF_ANY);
		return true;
	}
	__u64 due = l->due_ns > now ? l->due_ns : now;

	if (due - now > (burst - 1) * interval) {
		__sync_fetch_and_add(&l->suppressed, 1);
		return false;
	}
	l->due_ns = due + interval;
	__u32 all = l->suppressed;

	*suppressed += all - l->told;
	l->told = all;
	return true;
}

static __always_inline void fill_head(struct head *h, __u64 now, __u32 signal,
				      const struct owner *o, __u32 suppressed)
{
	h->time_ns = now;
	h->cgroup_id = o->cgroup_id;
	h->hierarchy = o->hierarchy;
	h->signal = signal;
	h->suppressed = suppressed;
	h->pid = o->pid;
	__builtin_memcpy(h->comm, o->comm, COMM_LEN);
}

/*
 * RESERVE counts n more seen, asks the rate limit, and returns a record with
 * its head filled, or NULL; the caller ends with submit(). A macro because the
 * verifier wants the size as a constant.
 */
#define RESERVE(type, sig, n, own, now)                                                \
	({                                                                             \
		struct limit_key __k = { .cgroup_id = (own)->cgroup_id,                \
					 .hierarchy = (own)->hierarchy,                \
					 .what = (sig) };                              \
		__u32 __suppressed = 0;                                                \
		type *__r = NULL;                                                      \
		COUNT(sig, seen, n);                                                   \
		if (!allowed(&__k, now, limit_interval_ns, limit_burst, &__suppressed)) { \
			COUNT(sig, limited, n);                                        \
		} else {                                                               \
			__r = bpf_ringbuf_reserve(&events, sizeof(type), 0);           \
			if (__r)                                                       \
				fill_head(&__r->head, now, sig, own, __suppressed);    \
			else                                                           \
				COUNT(sig, lost, n);                                   \
		}                                                                      \
		__r;                                                                   \
	})

/*
 * Waking the reader costs six times what sending does. So it is woken at once
 * after a quiet spell, by volume in a burst, and otherwise finds the records
 * by itself: it looks again within twice QUIET_NS after each wake-up.
 */
#define QUIET_NS 50000000
#define BUSY_NS 1000000
#define WAKE_BYTES (RING_BYTES / 8)

static __always_inline void submit(void *record, __u32 signal, __u64 n, __u64 now,
				   bool urgent)
{
	__u64 flags = BPF_RB_NO_WAKEUP;
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&woken, &zero);

	if (urgent || !last || now - *last > QUIET_NS ||
	    (now - *last > BUSY_NS &&
	     bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > WAKE_BYTES)) {
		flags = BPF_RB_FORCE_WAKEUP;
		if (last)
			*last = now;
	}
	COUNT(signal, kept, n);
	bpf_ringbuf_submit(record, flags);
}

/* The root of every hierarchy has this id. */
#define ROOT_CGROUP 1

/*
 * task_cgroup takes the cgroup v2 of a task. Where the node puts its
 * containers only into v1 hierarchies that one is the root for everybody, and
 * the cgroup of the memory controller says who it is.
 */
static __always_inline void task_cgroup(struct task_struct *task, struct owner *o)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup *cgrp = BPF_CORE_READ(set, dfl_cgrp);

	o->hierarchy = 0;
	o->cgroup_id = BPF_CORE_READ(cgrp, kn, id);
	if (o->cgroup_id != ROOT_CGROUP)
		return;

	struct cgroup_subsys_state *css = NULL;
	int memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

	bpf_probe_read_kernel(&css, sizeof(css),
			      (void **)__builtin_preserve_access_index(&set->subsys) + memory);
	cgrp = BPF_CORE_READ(css, cgroup);
	if (!cgrp)
		return;
	o->cgroup_id = BPF_CORE_READ(cgrp, kn, id);
	o->hierarchy = BPF_CORE_READ(cgrp, root, hierarchy_id);
}

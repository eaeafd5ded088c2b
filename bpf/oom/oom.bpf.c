//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * OOM: whom the kernel killed, for which memory cgroup, and who asked for one
 * page too many.
 *
 * mark_victim runs in the task whose allocation failed. Newer kernels, some
 * 5.10.y among them, hand over the victim; older ones only its pid. There the
 * SIGKILL that the same task has just sent gives the victim away.
 *
 * Nothing hands over the memory cgroup that hit its limit, and it need not be
 * the victim's own: it may be its pod or any parent. The kernel marks it, and
 * all below it, with oom_lock while it kills, so the topmost marked ancestor is
 * the one. Kernels without that mark (cgroup v1 not built in) show it as the
 * lowest ancestor of both tasks with no room for another allocation.
 */
#include "tapio.h"

struct oom_event {
	struct head head; /* of the victim */
	__u64 memcg_id; /* that hit its limit; 0: the whole system ran out */
	__u64 limit_bytes;
	__u64 usage_bytes;
	__u64 anon_bytes;
	__u64 file_bytes;
	__u64 shmem_bytes;
	__u32 memcg_hierarchy;
	__u32 trigger_pid;
	char trigger_comm[COMM_LEN];
	__u8 has_victim; /* the victim's comm, cgroup and the memory cgroup are known */
	__u8 has_rss;
	__u8 pad[6];
};

const struct oom_event *unused_oom_event __attribute__((unused));

/* Whom a task has sent SIGKILL, for kernels whose mark_victim has only a pid. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u32); /* thread id of the sender */
	__type(value, __u64); /* struct task_struct * */
	__uint(max_entries, 256);
} killed SEC(".maps");

struct process {
	__u64 start_ns;
	__u32 pid;
	__u32 pad;
};

/* Each thread of a victim that still allocates is marked once more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct process);
	__type(value, __u8);
	__uint(max_entries, 1024);
} told SEC(".maps");

const volatile __u64 page_bytes = 4096;

#define MAX_DEPTH 24
/* PAGE_COUNTER_MAX is LONG_MAX / PAGE_SIZE, for pages of 64 KiB at the most. */
#define UNLIMITED_PAGES (1ULL << 47)
/* No allocation of more pages than this makes the kernel kill. */
#define COSTLY_PAGES 8

static __always_inline struct mem_cgroup *memcg_of(struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct mem_cgroup *memcg = NULL;
	int memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

	/* The css is the first field of the memory cgroup. */
	bpf_probe_read_kernel(&memcg, sizeof(memcg),
			      (void **)__builtin_preserve_access_index(&set->subsys) + memory);
	return memcg;
}

static __always_inline struct mem_cgroup *parent_of(struct mem_cgroup *memcg)
{
	return (struct mem_cgroup *)BPF_CORE_READ(memcg, css.parent);
}

#define LOCKED 1
#define FULL 2

/*
 * state_of one memory cgroup. Global functions, so that the verifier looks at
 * them once and not at every step of the loops that call them.
 */
__noinline __u32 state_of(__u64 address)
{
	struct mem_cgroup *memcg = (void *)address;
	__u32 state = 0;

	/* The root has no limit, and its own counter means nothing. */
	if (!parent_of(memcg))
		return 0;

	__u64 max = BPF_CORE_READ(memcg, memory.max);
	__u64 usage = BPF_CORE_READ(memcg, memory.usage.counter);

	if (usage + COSTLY_PAGES > max)
		state |= FULL;
	if (bpf_core_field_exists(memcg->oom_lock) && BPF_CORE_READ(memcg, oom_lock))
		state |= LOCKED;
	return state;
}

__noinline __u64 parent(__u64 memcg)
{
	return (__u64)parent_of((void *)memcg);
}

static __noinline __u64 limit_hit(struct task_struct *victim, struct task_struct *trigger)
{
	__u64 memcg = (__u64)memcg_of(victim), full = 0, locked = 0;

	for (int i = 0; i < MAX_DEPTH && memcg; i++) {
		__u32 state = state_of(memcg);

		if (state & LOCKED)
			locked = memcg;
		if (state & FULL && !full)
			full = memcg;
		memcg = parent(memcg);
	}
	if (locked || !full)
		return locked;

	/* Another kill in the same place may have taken the mark away already. */
	memcg = (__u64)memcg_of(trigger);
	for (int i = 0; i < MAX_DEPTH && memcg; i++) {
		if (memcg == full)
			return full;
		memcg = parent(memcg);
	}
	return 0;
}

static __always_inline __u64 rss_pages(struct mm_struct *mm, int which)
{
	__s64 pages = 0;

	if (bpf_core_type_exists(struct mm_rss_stat)) {
		struct mm_struct___rss_stat *old = (void *)mm;

		bpf_probe_read_kernel(
			&pages, sizeof(pages),
			(void *)__builtin_preserve_access_index(&old->rss_stat.count) +
				which * sizeof(atomic_long_t));
	} else {
		/* As the kernel's own report does, without the CPUs' shares. */
		bpf_probe_read_kernel(&pages, sizeof(pages),
				      (void *)__builtin_preserve_access_index(&mm->rss_stat) +
					      which * bpf_core_type_size(struct percpu_counter) +
					      bpf_core_field_offset(struct percpu_counter, count));
	}
	return pages > 0 ? pages : 0;
}

SEC("raw_tp/signal_generate")
int note_kill(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 me = bpf_get_current_pid_tgid();
	__u64 victim = ctx->args[2];

	if ((int)ctx->args[0] == SIGKILL)
		bpf_map_update_elem(&killed, &me, &victim, BPF_ANY);
	return 0;
}

SEC("raw_tp/mark_victim")
int mark_victim(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *trigger = (void *)bpf_get_current_task(), *victim = NULL;
	__u64 now = bpf_ktime_get_ns();
	struct owner o = {};

	if (bpf_core_field_exists(struct trace_event_raw_mark_victim___task, anon_rss)) {
		victim = (void *)ctx->args[0];
		o.pid = BPF_CORE_READ(victim, tgid);
	} else {
		__u32 me = bpf_get_current_pid_tgid();
		__u64 *noted = bpf_map_lookup_elem(&killed, &me);

		o.pid = ctx->args[0];
		if (noted && BPF_CORE_READ((struct task_struct *)*noted, pid) == o.pid) {
			victim = (void *)*noted;
			o.pid = BPF_CORE_READ(victim, tgid);
		} else if (BPF_CORE_READ(trigger, pid) == o.pid) {
			/* It was dying already. */
			victim = trigger;
			o.pid = BPF_CORE_READ(victim, tgid);
		}
	}
	if (victim) {
		struct process id = { .start_ns = BPF_CORE_READ(victim, group_leader,
								start_boottime),
				      .pid = o.pid };
		__u8 yes = 1;

		if (bpf_map_update_elem(&told, &id, &yes, BPF_NOEXIST) == -EEXIST) {
			normal(SIGNAL_OOM_KILL, 1);
			return 0;
		}
		task_cgroup(victim, &o);
		BPF_CORE_READ_STR_INTO(&o.comm, victim, group_leader, comm);
	}

	struct oom_event *e = RESERVE(struct oom_event, SIGNAL_OOM_KILL, 1, &o, now);

	if (!e)
		return 0;
	__builtin_memset((void *)e + sizeof(e->head), 0, sizeof(*e) - sizeof(e->head));
	e->trigger_pid = bpf_get_current_pid_tgid() >> 32;
	BPF_CORE_READ_STR_INTO(&e->trigger_comm, trigger, group_leader, comm);
	if (victim) {
		struct mem_cgroup *memcg = (void *)limit_hit(victim, trigger);
		struct mm_struct *mm = BPF_CORE_READ(victim, mm);
		__u64 limit;

		e->has_victim = true;
		if (memcg) {
			e->memcg_id = BPF_CORE_READ(memcg, css.cgroup, kn, id);
			e->memcg_hierarchy = BPF_CORE_READ(memcg, css.cgroup, root, hierarchy_id);
			limit = BPF_CORE_READ(memcg, memory.max);
			/* v1 may have hit its limit of memory and swap instead. */
			if (limit < UNLIMITED_PAGES)
				e->limit_bytes = limit * page_bytes;
			e->usage_bytes = BPF_CORE_READ(memcg, memory.usage.counter) * page_bytes;
		}
		if (mm) {
			e->has_rss = true;
			e->anon_bytes = rss_pages(mm, MM_ANONPAGES) * page_bytes;
			e->file_bytes = rss_pages(mm, MM_FILEPAGES) * page_bytes;
			e->shmem_bytes = rss_pages(mm, MM_SHMEMPAGES) * page_bytes;
		}
	}
	submit(e, SIGNAL_OOM_KILL, 1, now, true);
	return 0;
}

//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Exit: processes that fail, once each.
 *
 * sched_process_exit runs once a thread, and the leader is often not the last
 * one. The last is the one that finds signal->live at zero; two that leave
 * together may both find it so (6.18 hands over who it was, older kernels do
 * not), hence a note of whom we have told.
 *
 * The status is what wait() would return: that of the group where exit_group
 * or a signal ended it, else the leader's own.
 */
#include "tapio.h"

struct exit_event {
	struct head head;
	__u64 runtime_ns;
	__u32 parent_pid;
	__u8 code;
	__u8 signal;
	__u8 core_dumped;
	__u8 container_init; /* was process 1 of its own pid namespace */
	char parent_comm[COMM_LEN];
};

const struct exit_event *unused_exit_event __attribute__((unused));

struct process {
	__u64 start_ns;
	__u32 pid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct process);
	__type(value, __u8);
	__uint(max_entries, 1024);
} told SEC(".maps");

/* An exit that repeats in one place (a probe script, grep without a match) is
 * how that program works: this many are told, then one an interval. */
const volatile __u32 habit_burst = 5;
const volatile __u64 habit_interval_ns = 600ULL * 1000000000;

/* Whether the program of the OOM signal tells what the OOM killer did. */
const volatile bool oom_is_told = true;

#define SIGNAL_GROUP_EXIT 4
#define SHELL_TERMINATED (128 + SIGTERM)

/* Cleared in pid_namespace.pid_allocated when the namespace's process 1 has ended. */
#define PIDNS_ADDING (1u << 31)

/* Where a process stands in its own pid namespace. */
enum standing {
	STANDING_OTHER,
	STANDING_INIT, /* it is process 1 of a container */
	STANDING_ORPHAN, /* process 1 has ended, and the kernel kills the rest */
};

static __always_inline enum standing standing_of(struct task_struct *leader)
{
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	unsigned int level = BPF_CORE_READ(pid, level);
	struct upid *own = (void *)__builtin_preserve_access_index(&pid->numbers[0]);

	if (!level || level > 32)
		return STANDING_OTHER;
	own = (void *)own + level * bpf_core_type_size(struct upid);
	if (BPF_CORE_READ(own, nr) == 1)
		return STANDING_INIT;
	if (!(BPF_CORE_READ(own, ns, pid_allocated) & PIDNS_ADDING))
		return STANDING_ORPHAN;
	return STANDING_OTHER;
}

static __always_inline __u32 hash(const char *comm, __u32 code)
{
	__u32 h = 2166136261u ^ code;

#pragma unroll
	for (int i = 0; i < COMM_LEN; i++)
		h = (h ^ (__u8)comm[i]) * 16777619u;
	/* The small numbers are the signals'. */
	return h | 1u << 31;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct signal_struct *group = task->signal;

	if (group->live.counter)
		return 0;

	struct task_struct *leader = task->group_leader;
	__u32 status = group->flags & SIGNAL_GROUP_EXIT ? group->group_exit_code :
							  leader->exit_code;

	if (!(status & 0xff7f))
		return 0;

	struct process id = { .start_ns = leader->start_boottime, .pid = leader->tgid };
	__u8 yes = 1;

	if (bpf_map_update_elem(&told, &id, &yes, BPF_NOEXIST) == -EEXIST)
		return 0;

	__u32 code = status >> 8 & 0xff, signal = status & 0x7f;
	__u32 what = signal ? SIGNAL_EXIT_SIGNAL : SIGNAL_EXIT_CODE;
	enum standing standing = standing_of(leader);
	__u32 suppressed = 0;

	/* An ordered stop: the runtime, systemd or a person asked for it, or
	 * the container has ended and takes this one along. */
	if (signal == SIGTERM || code == SHELL_TERMINATED ||
	    (signal == SIGKILL && standing == STANDING_ORPHAN))
		what = SIGNAL_EXIT_STOPPED;
	if (oom_is_told && signal == SIGKILL && group->oom_mm)
		what = SIGNAL_EXIT_OOM;
	if (what == SIGNAL_EXIT_STOPPED || what == SIGNAL_EXIT_OOM) {
		normal(what, 1);
		return 0;
	}

	struct owner o = { .pid = id.pid };
	__u64 now = bpf_ktime_get_ns();

	task_cgroup(task, &o);
	BPF_CORE_READ_STR_INTO(&o.comm, leader, comm);
	if (!signal && standing != STANDING_INIT) {
		struct limit_key habit = { .cgroup_id = o.cgroup_id,
					   .hierarchy = o.hierarchy,
					   .what = hash(o.comm, code) };

		if (!allowed(&habit, now, habit_interval_ns, habit_burst, &suppressed)) {
			normal(what, 1);
			return 0;
		}
	}

	struct exit_event *e = RESERVE(struct exit_event, what, 1, &o, now);

	if (!e)
		return 0;
	e->head.suppressed += suppressed;
	e->runtime_ns = bpf_ktime_get_boot_ns() - id.start_ns;
	e->code = code;
	e->signal = signal;
	e->core_dumped = !!(status & 0x80);
	e->container_init = standing == STANDING_INIT;
	e->parent_pid = BPF_CORE_READ(leader, real_parent, tgid);
	BPF_CORE_READ_STR_INTO(&e->parent_comm, leader, real_parent, group_leader, comm);
	submit(e, what, 1, now, false);
	return 0;
}

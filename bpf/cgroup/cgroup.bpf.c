//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Cgroup: which path an id stands for, told when the directory is made. The
 * record travels in the same ring as the events of the processes that will
 * live there, so the name is always known before it is needed, even of a
 * container that is gone within milliseconds.
 *
 * Of cgroup v1 only the hierarchy with the memory controller is of interest.
 */
#include "tapio.h"

#define PATH_LEN 512

struct cgroup_event {
	struct head head;
	__u32 removed;
	__u32 length; /* of the path; PATH_LEN - 1 at the most */
	char path[PATH_LEN];
};

const struct cgroup_event *unused_cgroup_event __attribute__((unused));

static __always_inline int tell(struct cgroup *cgrp, const char *path, bool removed)
{
	struct cgroup_root *root = cgrp->root;
	int memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

	if (root->hierarchy_id && !(root->subsys_mask & 1 << memory))
		return 0;

	struct owner o = { .cgroup_id = cgrp->kn->id, .hierarchy = root->hierarchy_id };
	__u64 now = bpf_ktime_get_ns();
	struct cgroup_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	COUNT(SIGNAL_CGROUP, seen, 1);
	if (!e) {
		COUNT(SIGNAL_CGROUP, lost, 1);
		return 0;
	}
	fill_head(&e->head, now, SIGNAL_CGROUP, &o, 0);
	e->removed = removed;

	long n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), path);

	e->length = n > 0 ? n - 1 : 0;
	submit(e, SIGNAL_CGROUP, 1, now, false);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(made, struct cgroup *cgrp, const char *path)
{
	return tell(cgrp, path, false);
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(removed, struct cgroup *cgrp, const char *path)
{
	return tell(cgrp, path, true);
}

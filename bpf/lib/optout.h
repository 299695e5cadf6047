/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/* Pods that want to be left alone, such as those of a service mesh with sidecars. */

#ifndef __MESH_OPTOUT_H
#define __MESH_OPTOUT_H

#include "common.h"

/*
 * Whether the caller is in such a pod. First thing in each hook that would change
 * where something goes; those that only tell where it went go on answering for
 * sockets of before.
 */
static __always_inline bool opted_out(void)
{
	__u32 key = 0;
	__u64 *found = bpf_map_lookup_elem(&optout_levels, &key);
	__u64 levels = found ? READ_ONCE(*found) : 0;

	if (!levels)
		return false;
	for (int level = 1; level < OPTOUT_LEVELS; level++) {
		__u64 id;

		if (!(levels >> level & 1))
			continue;
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			return false; /* the caller is not that deep */
		if (bpf_map_lookup_elem(&optout, &id)) {
			count(COUNTER_OPTED_OUT);
			return true;
		}
	}
	return false;
}

#endif

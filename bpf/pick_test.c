// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * The choice of a backend alone, for tests: socket hooks cannot be run by
 * BPF_PROG_TEST_RUN, this can, millions of times in a second. No agent loads it.
 */

#include "lib/common.h"
#include "lib/lookup.h"

/* How often each backend was picked, by ID; ID 0: how often none was. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} picks SEC(".maps");

/* The mark of the packet is the index of the service. */
SEC("tc")
int pick(struct __sk_buff *skb)
{
	__u32 index = skb->mark, id = 0;
	struct service_entry *svc = bpf_map_lookup_elem(&service, &index);
	struct pick picked;
	__u64 *times;

	if (svc && pick_slot(index, READ_ONCE(svc->descriptor), &picked) == PICKED)
		id = picked.slot & MASK(SLOT_BACKEND_BITS);
	times = bpf_map_lookup_elem(&picks, &id);
	if (times)
		__sync_fetch_and_add(times, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";

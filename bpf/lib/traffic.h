/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/* What is counted for each backend. */

#ifndef __MESH_TRAFFIC_H
#define __MESH_TRAFFIC_H

#include "common.h"

/* Adds at once, whatever other CPUs add; the sum is nobody's to know. */
#define ADD(to, n) ((void)__sync_fetch_and_add(&(to), (n)))

/*
 * Finds the counters of the backend that a slot word leads to, as long as it is
 * that backend's number: sockets outlive backends, and numbers are used again.
 */
static __always_inline struct traffic_entry *traffic_of(__u64 slot)
{
	__u32 id = slot & MASK(SLOT_BACKEND_BITS);
	struct traffic_entry *entry;

	if (!slot)
		return NULL;
	entry = bpf_map_lookup_elem(&traffic, &id);
	if (!entry || READ_ONCE(entry->generation) !=
			      slot >> (SLOT_BACKEND_BITS + SLOT_SERVICE_BITS))
		return NULL;
	return entry;
}

static __always_inline void count_attempt(__u64 slot)
{
	struct traffic_entry *entry = traffic_of(slot);

	if (entry)
		ADD(entry->attempts, 1);
}

#endif

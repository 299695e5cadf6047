/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/* Forward lookup: from a frontend to one of its backends. */

#ifndef __MESH_LOOKUP_H
#define __MESH_LOOKUP_H

#include "common.h"

/* How often a lookup is tried while the agent changes what it reads. */
#define LOOKUP_TRIES 3

/* How old a heartbeat may be before local services go back to kube-proxy. */
const volatile __u64 stale_after_ns = 300ULL * 1000 * 1000 * 1000;

/* One pick: the backend, and the slot word that led to it. */
struct pick {
	const struct backend_entry *backend;
	__u64 slot;
};

enum outcome {
	PICKED,
	MISSED, /* not a frontend of ours: the address is left alone */
	LEAVE,	/* one of ours, and yet the address is left alone */
	AGAIN,	/* something changed in between */
};

static __always_inline bool agent_stale(void)
{
	__u32 key = 0;
	struct meta_entry *m = bpf_map_lookup_elem(&meta, &key);

	/* Signed: another CPU's clock may be a little behind the agent's. */
	return !m || (__s64)(bpf_ktime_get_ns() - READ_ONCE(m->heartbeat_ns)) >
			     (__s64)stale_after_ns;
}

/*
 * Follows a slot word to its backend. It fails if the entry is of another
 * service now, or was used again for another backend since the word was
 * written.
 */
static __always_inline enum outcome follow(__u64 word, __u32 index,
					   struct pick *out)
{
	__u32 id = word & MASK(SLOT_BACKEND_BITS);
	struct backend_entry *be = bpf_map_lookup_elem(&backends, &id);

	if (!be || be->service != index ||
	    ((word >> SLOT_BACKEND_BITS) & MASK(SLOT_SERVICE_BITS)) != index ||
	    word >> (SLOT_BACKEND_BITS + SLOT_SERVICE_BITS) != be->generation)
		return AGAIN;
	out->backend = be;
	out->slot = word;
	return PICKED;
}

/*
 * Follows a slot word that was stored earlier, whose backend may have lost its
 * slots, or gone, since then. The flag goes before an update is over, so that
 * no client of old keeps a backend that new ones may not get.
 */
static __always_inline bool still_picked(__u64 word, __u32 index,
					 struct pick *out)
{
	return word && follow(word, index, out) == PICKED &&
	       READ_ONCE(out->backend->picked);
}

/*
 * Picks slot number rand*length/2^32 of the range, which is even to 2^-8 for
 * the longest range there can be, and needs no division.
 */
static __always_inline enum outcome pick_slot(__u32 index, __u64 descriptor,
					      struct pick *out)
{
	__u64 base = descriptor & MASK(DESCRIPTOR_BASE_BITS);
	__u64 length = (descriptor >> DESCRIPTOR_BASE_BITS) &
		       MASK(DESCRIPTOR_LENGTH_BITS);
	__u32 at = base + ((bpf_get_prandom_u32() * length) >> 32);
	__u64 *slot = bpf_map_lookup_elem(&slots, &at);

	if (!slot)
		return AGAIN;
	return follow(READ_ONCE(*slot), index, out);
}

/*
 * Picks for a service with session affinity: the backend that the client, which
 * is the network namespace, had within the timeout, as long as it takes new
 * connections. A pod has a namespace; host-network pods and the host itself are
 * one client.
 *
 * Of connects that find nothing at the same time, the first to write decides
 * for all; of those that find a backend that is gone, the last, for later ones.
 * The words of an element are read and written one by one: if it becomes
 * another client's meanwhile, the slot word still says which service it is of.
 */
static __always_inline enum outcome
pick_for_client(struct bpf_sock_addr *ctx, __u32 index, __u32 timeout_s,
		__u64 descriptor, struct pick *out)
{
	struct affinity_key key = { .service = index };
	__u64 now = bpf_ktime_get_ns();
	struct affinity_entry fresh = { .used_ns = now };
	struct affinity_entry *known;
	enum outcome outcome;

	key.netns = bpf_get_netns_cookie(ctx);
	known = bpf_map_lookup_elem(&affinity, &key);
	/* Signed: another CPU's clock may be a little ahead of ours. */
	if (known &&
	    (__s64)(now - READ_ONCE(known->used_ns)) <
		    (__s64)(timeout_s * NS_PER_SEC) &&
	    still_picked(READ_ONCE(known->slot), index, out)) {
		WRITE_ONCE(known->used_ns, now);
		count(COUNTER_AFFINE);
		return PICKED;
	}
	outcome = pick_slot(index, descriptor, out);
	if (outcome != PICKED)
		return outcome;
	if (known) {
		WRITE_ONCE(known->slot, out->slot);
		WRITE_ONCE(known->used_ns, now);
		return PICKED;
	}
	fresh.slot = out->slot;
	if (!bpf_map_update_elem(&affinity, &key, &fresh, BPF_NOEXIST))
		return PICKED;
	/* Another one was first; or there is no memory, and none to remember.
	 */
	known = bpf_map_lookup_elem(&affinity, &key);
	if (known && !still_picked(READ_ONCE(known->slot), index, out))
		return AGAIN;
	return PICKED;
}

static __always_inline enum outcome try_lookup(struct bpf_sock_addr *ctx,
					       const struct vip_key *key,
					       __u64 before, struct pick *out)
{
	__u32 *found = bpf_map_lookup_elem(&vip, key);
	struct service_entry *svc;
	__u64 descriptor;
	__u32 index, timeout_s;

	if (!found)
		return MISSED;
	index = READ_ONCE(*found);
	svc = bpf_map_lookup_elem(&service, &index);
	/* A hash value that was looked up can become another key's. */
	if (!svc || !same_key(&svc->key, key))
		return AGAIN;
	descriptor = READ_ONCE(svc->descriptor);
	if (!((descriptor >> DESCRIPTOR_BASE_BITS) &
	      MASK(DESCRIPTOR_LENGTH_BITS))) {
		count(COUNTER_NO_BACKEND);
		return LEAVE;
	}
	if (descriptor >> (DESCRIPTOR_BASE_BITS + DESCRIPTOR_LENGTH_BITS) &
		    SERVICE_HANDBACK &&
	    agent_stale()) {
		count(COUNTER_HANDED_BACK);
		return LEAVE;
	}
	if (still_picked(before, index, out))
		return PICKED;
	timeout_s = READ_ONCE(svc->affinity_s);
	if (timeout_s)
		return pick_for_client(ctx, index, timeout_s, descriptor, out);
	return pick_slot(index, descriptor, out);
}

/*
 * Finds a backend: that of the slot word `before`, unless that is 0 or does not
 * lead to one that takes new connections now; else the client's, where the
 * service has session affinity; else one by chance. Everything but PICKED
 * leaves the address alone; AGAIN is never returned.
 */
static __always_inline enum outcome lookup(struct bpf_sock_addr *ctx,
					   const struct vip_key *key,
					   __u64 before, struct pick *out)
{
	for (int i = 0; i < LOOKUP_TRIES; i++) {
		enum outcome outcome = try_lookup(ctx, key, before, out);

		if (outcome != AGAIN)
			return outcome;
		count(COUNTER_RETRY);
	}
	count(COUNTER_GAVE_UP);
	return LEAVE;
}

#endif

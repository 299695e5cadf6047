/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/*
 * State of UDP sockets that are not connected: which backend each frontend's
 * datagrams go to, and which frontend each backend's answers come from.
 */

#ifndef __MESH_SENT_H
#define __MESH_SENT_H

#include "common.h"
#include "lookup.h"

static __always_inline bool same_backend(const struct sock_entry *entry,
					 const __be32 addr[4], __be16 port)
{
	return entry->backend_port == port &&
	       same_addr(entry->backend_addr, addr);
}

static __always_inline void spilt_key(struct sent_more_key *to,
				      struct bpf_sock_addr *ctx, bool answer,
				      const __be32 addr[4], __be16 port)
{
	to->cookie = bpf_get_socket_cookie(ctx);
	copy_addr(to->addr, addr);
	to->port = port;
	to->answer = answer;
	to->pad = 0;
	to->pad2 = 0;
}

/*
 * Finds the frontend that a backend answers for. An element of a hash can
 * become another key's while it is copied; it was ours if it still is
 * afterwards.
 */
static __always_inline bool spilt_frontend(struct bpf_sock_addr *ctx,
					   const __be32 addr[4], __be16 port,
					   struct vip_key *out)
{
	struct sent_more_entry *found;
	struct sent_more_key key;

	spilt_key(&key, ctx, true, addr, port);
	found = bpf_map_lookup_elem(&sent_more, &key);
	if (!found)
		return false;
	*out = found->vip;
	return bpf_map_lookup_elem(&sent_more, &key) == found;
}

/* Finds the slot word of a frontend, if the way back from it is known. */
static __always_inline __u64 spilt_slot(struct bpf_sock_addr *ctx,
					const struct vip_key *vip)
{
	struct sent_more_entry *found;
	struct sent_more_key key;
	struct vip_key back;
	struct backend_entry *be;
	__u64 word;
	__u32 id;

	spilt_key(&key, ctx, false, vip->addr, vip->port);
	found = bpf_map_lookup_elem(&sent_more, &key);
	if (!found)
		return 0;
	word = READ_ONCE(found->slot);
	id = word & MASK(SLOT_BACKEND_BITS);
	be = bpf_map_lookup_elem(&backends, &id);
	if (!be || !spilt_frontend(ctx, be->addr, be->port, &back) ||
	    !same_key(&back, vip))
		return 0;
	return word;
}

/*
 * Returns the slot word of the backend that the frontend's datagrams went to
 * before, or 0. It is read without the lock: a word that is another frontend's
 * by the time it is read does not lead to a backend of this one.
 */
static __always_inline __u64 sent_before(struct bpf_sock_addr *ctx,
					 const struct sent_entry *sent,
					 const struct vip_key *key)
{
	for (int i = 0; i < SENT_COUNT; i++) {
		const struct sock_entry *to = &sent->to[i];
		__u64 word = READ_ONCE(to->slot);

		if (word && same_key(&to->vip, key))
			return word;
	}
	return READ_ONCE(sent->spilt) ? spilt_slot(ctx, key) : 0;
}

/* Moves to the overflow what there is no room for. */
static __always_inline void spill(struct bpf_sock_addr *ctx,
				  struct sent_entry *sent,
				  const struct sock_entry *old)
{
	struct sent_more_entry value = {};
	struct sent_more_key key;

	WRITE_ONCE(sent->spilt, 1);
	value.slot = old->slot;
	value.vip = old->vip;
	/* The way back first: a datagram must not go out without one. */
	spilt_key(&key, ctx, true, old->backend_addr, old->backend_port);
	bpf_map_update_elem(&sent_more, &key, &value, BPF_ANY);
	spilt_key(&key, ctx, false, old->vip.addr, old->vip.port);
	bpf_map_update_elem(&sent_more, &key, &value, BPF_ANY);
	count(COUNTER_SENT_SPILT);
}

/*
 * Notes a backend for a frontend. What the frontend had before stays, for late
 * answers. Of two frontends with one backend the last that was sent to counts;
 * the other gets a backend anew with its next datagram.
 */
static __always_inline void remember_sent(struct bpf_sock_addr *ctx,
					  struct sent_entry *sent,
					  const struct vip_key *key,
					  const struct pick *picked)
{
	struct sock_entry entry = { .slot = picked->slot, .vip = *key };
	struct sock_entry old;
	__u32 place, at;
	bool found = false;

	copy_addr(entry.backend_addr, picked->backend->addr);
	entry.backend_port = picked->backend->port;

	bpf_spin_lock(&sent->lock);
	for (int i = 0; i < SENT_COUNT; i++) {
		if (same_key(&sent->to[i].vip, &entry.vip))
			sent->to[i].slot = 0;
	}
	/* The oldest place that no frontend needs, or the oldest of all. */
	place = sent->next % SENT_COUNT;
	for (int i = SENT_COUNT - 1; i >= 0; i--) {
		at = (sent->next + i) % SENT_COUNT;
		if (!sent->to[at].slot)
			place = at;
	}
	for (int i = 0; i < SENT_COUNT; i++) {
		if (same_backend(&sent->to[i], entry.backend_addr,
				 entry.backend_port)) {
			place = i;
			found = true;
		}
	}
	place %= SENT_COUNT;
	old = sent->to[place];
	sent->to[place] = entry;
	if (!found)
		sent->next = place + 1;
	bpf_spin_unlock(&sent->lock);

	if (!found && old.slot)
		spill(ctx, sent, &old);
}

/*
 * Forgets the backend that a socket now sends to by its own address: what it
 * answers to that must not show a Service.
 */
static __always_inline void unsend(struct bpf_sock_addr *ctx,
				   struct sent_entry *sent,
				   const struct vip_key *key)
{
	bool found = false;

	/* Without the lock first: most datagrams have nothing to do with us. */
	for (int i = 0; i < SENT_COUNT; i++)
		found |= same_backend(&sent->to[i], key->addr, key->port);
	if (found) {
		bpf_spin_lock(&sent->lock);
		for (int i = 0; i < SENT_COUNT; i++) {
			if (same_backend(&sent->to[i], key->addr, key->port)) {
				sent->to[i].slot = 0;
				sent->to[i].backend_port = 0;
			}
		}
		bpf_spin_unlock(&sent->lock);
	}
	if (READ_ONCE(sent->spilt)) {
		struct sent_more_key spilt;

		spilt_key(&spilt, ctx, true, key->addr, key->port);
		bpf_map_delete_elem(&sent_more, &spilt);
	}
}

/* Finds the frontend that a backend answers for, if the socket sent to it. */
static __always_inline bool recall_sent(struct bpf_sock_addr *ctx,
					struct bpf_sock *sk,
					const __be32 from[4], __be16 port,
					struct vip_key *out)
{
	struct sent_entry *sent = bpf_sk_storage_get(&sock_sent, sk, NULL, 0);
	bool found = false;

	if (!sent)
		return false;
	bpf_spin_lock(&sent->lock);
	for (int i = 0; i < SENT_COUNT; i++) {
		if (!found && same_backend(&sent->to[i], from, port)) {
			*out = sent->to[i].vip;
			found = true;
		}
	}
	bpf_spin_unlock(&sent->lock);
	if (!found && READ_ONCE(sent->spilt))
		found = spilt_frontend(ctx, from, port, out);
	return found;
}

#endif

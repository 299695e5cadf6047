/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/* Reverse state of connected sockets: what the peer was translated from. */

#ifndef __MESH_REVERSE_H
#define __MESH_REVERSE_H

#include "common.h"

/*
 * Remembers a translation in the socket. Without memory for it the connection
 * goes on and getpeername() shows the backend.
 */
static __always_inline void remember(struct bpf_sock *sk,
				     const struct vip_key *key,
				     const struct backend_entry *backend,
				     __u64 slot)
{
	struct sock_entry *state = bpf_sk_storage_get(
		&sock_state, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!state) {
		count(COUNTER_NO_REVERSE);
		return;
	}
	state->slot = slot;
	state->vip = *key;
	copy_addr(state->backend_addr, backend->addr);
	state->backend_port = backend->port;
}

/*
 * Returns the slot word of the backend that the socket is connected to for the
 * frontend, or 0: a datagram that names the frontend again must go there, as
 * the kernel drops what does not come from the peer.
 */
static __always_inline __u64 connected_slot(struct bpf_sock *sk,
					    const struct vip_key *key)
{
	struct sock_entry *state = bpf_sk_storage_get(&sock_state, sk, NULL, 0);

	return state && same_key(&state->vip, key) ? READ_ONCE(state->slot) : 0;
}

/*
 * Returns the slot word of the backend that a TCP socket was connected to, or 0.
 * It holds as long as the socket has not connected elsewhere: what was counted
 * as open is counted as closed by it.
 */
static __always_inline __u64 noted_slot(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sock_entry *state;

	if (!sk)
		return 0;
	state = bpf_sk_storage_get(&sock_state, sk, NULL, 0);
	return state ? READ_ONCE(state->slot) : 0;
}

/*
 * Forgets an earlier translation: the socket now connects to what it asked for,
 * which may be the very backend that it was once translated to.
 */
static __always_inline void forget(struct bpf_sock *sk)
{
	bpf_sk_storage_delete(&sock_state, sk);
}

/*
 * Finds the frontend that the peer stands for. The peer is compared with what
 * was stored, so state that outlived its connection (AF_UNSPEC, another
 * program's rewrite) is never shown.
 */
static __always_inline bool recall(struct bpf_sock *sk, const __be32 peer[4],
				   __be16 port, struct vip_key *out)
{
	struct sock_entry *state = bpf_sk_storage_get(&sock_state, sk, NULL, 0);

	if (!state || state->backend_port != port ||
	    !same_addr(state->backend_addr, peer))
		return false;
	*out = state->vip;
	return true;
}

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/* What every hook needs: verdict, single reads, counters, addresses. */

#ifndef __MESH_COMMON_H
#define __MESH_COMMON_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* The only verdict: the call goes on. 0 would be EPERM to the application. */
#define PROCEED 1

/*
 * Reads or writes exactly once, in the width of the type. Context fields need
 * this too: the verifier refuses some of them in another width.
 */
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))

#define MASK(bits) ((1ULL << (bits)) - 1)

#define NS_PER_SEC 1000000000ULL

static __always_inline void count(enum counter which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		(*value)++;
}

/* Writes an IPv4 address in its 16-byte form. */
static __always_inline void map_ip4(__be32 to[4], __be32 ip4)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = ip4;
}

static __always_inline void copy_addr(__be32 to[4], const __be32 from[4])
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline bool same_addr(const __be32 a[4], const __be32 b[4])
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline bool same_key(const struct vip_key *a,
				     const struct vip_key *b)
{
	return same_addr(a->addr, b->addr) && a->port == b->port &&
	       a->protocol == b->protocol;
}

/*
 * The address of a hook of IPv4 or IPv6, in 16 bytes, and back. An IPv4-mapped
 * one comes and goes through IPv6's, so that nothing else needs to know of it.
 */
static __always_inline void read_ip4(__be32 to[4], struct bpf_sock_addr *ctx)
{
	map_ip4(to, READ_ONCE(ctx->user_ip4));
}

static __always_inline void read_ip6(__be32 to[4], struct bpf_sock_addr *ctx)
{
	to[0] = READ_ONCE(ctx->user_ip6[0]);
	to[1] = READ_ONCE(ctx->user_ip6[1]);
	to[2] = READ_ONCE(ctx->user_ip6[2]);
	to[3] = READ_ONCE(ctx->user_ip6[3]);
}

static __always_inline void write_ip4(struct bpf_sock_addr *ctx,
				      const __be32 addr[4], __be16 port)
{
	ctx->user_ip4 = addr[3];
	ctx->user_port = port;
}

static __always_inline void write_ip6(struct bpf_sock_addr *ctx,
				      const __be32 addr[4], __be16 port)
{
	ctx->user_ip6[0] = addr[0];
	ctx->user_ip6[1] = addr[1];
	ctx->user_ip6[2] = addr[2];
	ctx->user_ip6[3] = addr[3];
	ctx->user_port = port;
}

#endif

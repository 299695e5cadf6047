// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * recvfrom() and recvmsg() on a UDP socket: a datagram that comes from a
 * backend shows the Service's address that the socket sent to. Resolvers throw
 * away what comes from an address that they did not ask. Only runs if the
 * application wants to know the address.
 */

#include "lib/common.h"
#include "lib/reverse.h"
#include "lib/sent.h"

/* Finds the frontend that the sender of a datagram stands for. */
static __always_inline bool rename(struct bpf_sock_addr *ctx,
				   const __be32 from[4], struct vip_key *out)
{
	__be16 port = READ_ONCE(ctx->user_port);
	struct bpf_sock *sk = ctx->sk;

	if (!sk || (!recall(sk, from, port, out) &&
		    !recall_sent(ctx, sk, from, port, out)))
		return false;
	count(COUNTER_FROM_RENAMED);
	return true;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct vip_key key;
	__be32 from[4];

	read_ip4(from, ctx);
	if (rename(ctx, from, &key))
		write_ip4(ctx, key.addr, key.port);
	return PROCEED;
}

/* Also runs, alone, for IPv4-mapped addresses on AF_INET6 sockets. */
SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct vip_key key;
	__be32 from[4];

	read_ip6(from, ctx);
	if (rename(ctx, from, &key))
		write_ip6(ctx, key.addr, key.port);
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * getpeername(): the application sees the address that it connected to, not the
 * backend's. Libraries that compare the two would fail otherwise.
 */

#include "lib/common.h"
#include "lib/reverse.h"

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct vip_key *key;
	__be32 peer[4];

	map_ip4(peer, READ_ONCE(ctx->user_ip4));
	key = sk ? recall(sk, peer, READ_ONCE(ctx->user_port)) : NULL;
	if (!key)
		return PROCEED;
	ctx->user_ip4 = key->addr[3];
	ctx->user_port = key->port;
	return PROCEED;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct vip_key *key;
	__be32 peer[4];

	peer[0] = READ_ONCE(ctx->user_ip6[0]);
	peer[1] = READ_ONCE(ctx->user_ip6[1]);
	peer[2] = READ_ONCE(ctx->user_ip6[2]);
	peer[3] = READ_ONCE(ctx->user_ip6[3]);
	key = sk ? recall(sk, peer, READ_ONCE(ctx->user_port)) : NULL;
	if (!key)
		return PROCEED;
	ctx->user_ip6[0] = key->addr[0];
	ctx->user_ip6[1] = key->addr[1];
	ctx->user_ip6[2] = key->addr[2];
	ctx->user_ip6[3] = key->addr[3];
	ctx->user_port = key->port;
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

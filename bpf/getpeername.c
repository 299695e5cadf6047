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
	struct vip_key key;
	__be32 peer[4];

	read_ip4(peer, ctx);
	if (sk && recall(sk, peer, READ_ONCE(ctx->user_port), &key)) {
		count(COUNTER_PEER_RENAMED);
		write_ip4(ctx, key.addr, key.port);
	}
	return PROCEED;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct vip_key key;
	__be32 peer[4];

	read_ip6(peer, ctx);
	if (sk && recall(sk, peer, READ_ONCE(ctx->user_port), &key)) {
		count(COUNTER_PEER_RENAMED);
		write_ip6(ctx, key.addr, key.port);
	}
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

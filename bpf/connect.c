// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * connect(): an application connects to a Service's address, and its socket
 * gets the address of one backend. No packet is ever changed.
 */

#include <linux/in.h>

#include "lib/common.h"
#include "lib/lookup.h"
#include "lib/optout.h"
#include "lib/reverse.h"
#include "lib/traffic.h"

/*
 * Finds a backend for the key and notes it in the socket. If there is none, the
 * application connects to what it asked for, and kube-proxy serves that.
 */
static __always_inline bool translate(struct bpf_sock_addr *ctx,
				      struct vip_key *key, struct pick *out)
{
	__u32 protocol = READ_ONCE(ctx->protocol);
	struct bpf_sock *sk = ctx->sk;
	enum outcome outcome;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	key->protocol = protocol;
	key->port = READ_ONCE(ctx->user_port);
	outcome = opted_out() ? LEAVE : lookup(ctx, key, 0, out);
	if (outcome != PICKED) {
		if (outcome == MISSED)
			count(COUNTER_MISS);
		if (sk)
			forget(sk);
		return false;
	}
	if (sk)
		remember(sk, key, out->backend, out->slot);
	/* TCP's is counted when the SYN goes out: that may never be. */
	if (protocol == IPPROTO_UDP)
		count_attempt(out->slot);
	count(COUNTER_TRANSLATED);
	return true;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	read_ip4(key.addr, ctx);
	if (translate(ctx, &key, &picked))
		write_ip4(ctx, picked.backend->addr, picked.backend->port);
	return PROCEED;
}

/* Also runs, alone, for IPv4-mapped addresses on AF_INET6 sockets. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	read_ip6(key.addr, ctx);
	if (translate(ctx, &key, &picked))
		write_ip6(ctx, picked.backend->addr, picked.backend->port);
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

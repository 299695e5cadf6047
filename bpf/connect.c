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

/*
 * Finds a backend for the key and notes it in the socket. If there is none, the
 * application connects to what it asked for, and kube-proxy serves that.
 */
static __always_inline bool translate(struct bpf_sock *sk, __u32 protocol,
				      struct vip_key *key, struct pick *out)
{
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	key->protocol = protocol;
	if (opted_out() || !lookup(key, out)) {
		if (sk)
			forget(sk);
		return false;
	}
	if (sk)
		remember(sk, key, out->backend, out->slot);
	count(COUNTER_TRANSLATED);
	return true;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	map_ip4(key.addr, READ_ONCE(ctx->user_ip4));
	key.port = READ_ONCE(ctx->user_port);
	if (!translate(ctx->sk, READ_ONCE(ctx->protocol), &key, &picked))
		return PROCEED;
	ctx->user_ip4 = picked.backend->addr[3];
	ctx->user_port = picked.backend->port;
	return PROCEED;
}

/* Also runs, alone, for IPv4-mapped addresses on AF_INET6 sockets. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	key.addr[0] = READ_ONCE(ctx->user_ip6[0]);
	key.addr[1] = READ_ONCE(ctx->user_ip6[1]);
	key.addr[2] = READ_ONCE(ctx->user_ip6[2]);
	key.addr[3] = READ_ONCE(ctx->user_ip6[3]);
	key.port = READ_ONCE(ctx->user_port);
	if (!translate(ctx->sk, READ_ONCE(ctx->protocol), &key, &picked))
		return PROCEED;
	ctx->user_ip6[0] = picked.backend->addr[0];
	ctx->user_ip6[1] = picked.backend->addr[1];
	ctx->user_ip6[2] = picked.backend->addr[2];
	ctx->user_ip6[3] = picked.backend->addr[3];
	ctx->user_port = picked.backend->port;
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

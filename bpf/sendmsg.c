// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * sendto() and sendmsg() on a UDP socket that is not connected: the datagram
 * goes to one backend of the Service whose address it was for. Later ones of
 * the socket go to the same backend for as long as it takes new connections, as
 * kube-proxy's flows do: QUIC and the like would break otherwise.
 */

#include <linux/in.h>

#include "lib/common.h"
#include "lib/lookup.h"
#include "lib/optout.h"
#include "lib/reverse.h"
#include "lib/sent.h"
#include "lib/traffic.h"

/*
 * Finds a backend and notes it in the socket. If there is none, or nowhere to
 * note it, the datagram goes where the application wanted, and kube-proxy
 * serves that: an answer from an address that nobody asked would be thrown
 * away.
 */
static __always_inline bool redirect(struct bpf_sock_addr *ctx,
				     struct vip_key *key, struct pick *out)
{
	struct bpf_sock *sk = ctx->sk;
	struct sent_entry *sent;
	enum outcome outcome;
	__u64 before, noted;

	/* UDP-Lite comes here too. */
	if (READ_ONCE(ctx->protocol) != IPPROTO_UDP || !sk)
		return false;
	key->protocol = IPPROTO_UDP;
	key->port = READ_ONCE(ctx->user_port);
	sent = bpf_sk_storage_get(&sock_sent, sk, NULL, 0);
	noted = sent ? sent_before(ctx, sent, key) : 0;
	before = connected_slot(sk, key) ?: noted;
	outcome = opted_out() ? LEAVE : lookup(ctx, key, before, out);
	if (outcome != PICKED) {
		if (sent)
			unsend(ctx, sent, key);
		return false;
	}
	if (!sent)
		sent = bpf_sk_storage_get(&sock_sent, sk, NULL,
					  BPF_SK_STORAGE_GET_F_CREATE);
	if (!sent) {
		count(COUNTER_SENT_DENIED);
		return false;
	}
	if (out->slot != noted) {
		remember_sent(ctx, sent, key, out);
		count_attempt(out->slot);
	}
	count(COUNTER_SENT);
	return true;
}

/*
 * Also runs for IPv4-mapped addresses on AF_INET6 sockets, and, with the peer's
 * address, for each datagram of such a socket that is connected to one.
 */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	read_ip4(key.addr, ctx);
	if (redirect(ctx, &key, &picked))
		write_ip4(ctx, picked.backend->addr, picked.backend->port);
	return PROCEED;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct vip_key key = {};
	struct pick picked;

	read_ip6(key.addr, ctx);
	if (redirect(ctx, &key, &picked))
		write_ip6(ctx, picked.backend->addr, picked.backend->port);
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

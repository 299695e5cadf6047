// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * Finds the UDP sockets that are still connected to a backend that is gone, in all
 * network namespaces: the agent destroys them, and their applications connect
 * again. It runs when the agent reads the iterator, never for a connection.
 *
 * This object is not needed to balance anything, and is the only one that needs
 * what kernels have had since 5.12: their own types (BTF), iterators of socket
 * storage, the cookie of any socket. Without it the agent asks each namespace.
 */

#include <linux/in.h>
#include <bpf/bpf_core_read.h>

#include "lib/common.h"
#include "lib/lookup.h"

#define AF_INET 2
#define CONNECTED 1 /* TCP_ESTABLISHED, which UDP has too */

/* desired.NotReady: the backend is known, and does not serve. */
#define STATE_NOT_READY 2

/* What is read of the kernel's own types, wherever the running kernel has it. */
#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)
struct in6_addr___kernel {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	__u64 ns_id; /* since 6.18 */
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr___kernel skc_v6_daddr; /* if the kernel has IPv6 */
	struct in6_addr___kernel skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
#pragma clang attribute pop

struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq);
};

struct bpf_iter__bpf_sk_storage_map {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(struct sock *, sk);
	__bpf_md_ptr(struct sock_entry *, value);
};

/* What the agent reads of each such socket; IPv4 addresses as ever in 16 bytes. */
struct stale_socket {
	__u64 cookie;
	__u64 netns_id; /* 0 before 6.18 */
	__u32 netns_inum;
	__u32 ifindex; /* that it is bound to, or 0 */
	struct vip_key vip;
	__be32 local_addr[4];
	__be32 peer_addr[4];
	__be16 local_port;
	__be16 peer_port;
	__u16 family;
	__u16 pad;
	__u32 pad2;
};

/* Keeps the type in the object, for the agent's side to be generated from. */
const struct stale_socket *const stale_socket_type __attribute__((unused)) = 0;

/*
 * Whether the backend of a slot word serves no longer. An entry that was used
 * again has another generation: what it is now says nothing about the socket.
 */
static __always_inline bool gone(__u64 word)
{
	__u32 index = (word >> SLOT_BACKEND_BITS) & MASK(SLOT_SERVICE_BITS);
	struct pick noted;

	return follow(word, index, &noted) != PICKED || !noted.backend->used ||
	       noted.backend->state == STATE_NOT_READY;
}

SEC("iter/bpf_sk_storage_map")
int stale(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock_entry *noted = ctx->value;
	struct stale_socket out = {};
	struct sock *sk = ctx->sk;
	struct sock_common *common;
	__u64 word;

	if (!sk || !noted)
		return 0;
	common = &sk->__sk_common;
	if (sk->sk_protocol != IPPROTO_UDP || common->skc_state != CONNECTED)
		return 0;
	word = READ_ONCE(noted->slot);
	if (!gone(word))
		return 0;
	out.family = common->skc_family;
	if (out.family == AF_INET) {
		map_ip4(out.peer_addr, common->skc_daddr);
		map_ip4(out.local_addr, common->skc_rcv_saddr);
	} else {
		if (!bpf_core_field_exists(common->skc_v6_daddr))
			return 0;
		copy_addr(out.peer_addr,
			  common->skc_v6_daddr.in6_u.u6_addr32);
		copy_addr(out.local_addr,
			  common->skc_v6_rcv_saddr.in6_u.u6_addr32);
	}
	out.peer_port = common->skc_dport;
	/*
	 * Whoever connected to something else since, by whatever means, is not
	 * concerned; nor who is about to, which changes the word first.
	 */
	if (out.peer_port != noted->backend_port ||
	    !same_addr(out.peer_addr, noted->backend_addr))
		return 0;
	out.vip = noted->vip;
	if (READ_ONCE(noted->slot) != word)
		return 0;
	out.local_port = bpf_htons(common->skc_num);
	out.ifindex = common->skc_bound_dev_if;
	out.netns_inum = common->skc_net.net->ns.inum;
	if (bpf_core_field_exists(common->skc_net.net->ns.ns_id))
		out.netns_id = common->skc_net.net->ns.ns_id;
	out.cookie = bpf_get_socket_cookie(sk);
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

char _license[] SEC("license") = "GPL";

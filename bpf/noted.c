// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * Says what is noted in a connected UDP socket of this network namespace. Where the
 * kernel has no iterator of socket storage (stale.c), nor tells it in any other way
 * for UDP, the agent runs this for each socket that it is told of. It is never
 * attached to anything, and needs no more than the other programs do.
 */

#include "lib/common.h"

/* What is asked, in the place of a packet, behind an Ethernet header. */
struct noted_question {
	__be32 peer_addr[4];
	__be32 local_addr[4];
	__be16 peer_port;
	__be16 local_port;
	__u32 ipv4; /* 1: the addresses are IPv4 ones, in 16 bytes */
};

#define ETHERNET_HEADER 14

/* What is noted; a slot word of 0 says that nothing is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sock_entry);
	__uint(max_entries, 1);
} answer SEC(".maps");

/* Keeps the type in the object, for the agent's side to be generated from. */
const struct noted_question *const noted_question_type __attribute__((unused)) = 0;

SEC("tc")
int noted(struct __sk_buff *skb)
{
	struct noted_question asked = {};
	struct bpf_sock_tuple tuple = {};
	struct sock_entry *out, *entry;
	struct bpf_sock *sk;
	__u32 key = 0;

	out = bpf_map_lookup_elem(&answer, &key);
	if (!out)
		return 0;
	out->slot = 0;
	if (bpf_skb_load_bytes(skb, ETHERNET_HEADER, &asked, sizeof(asked)))
		return 0;
	/* As in a packet from the peer. */
	if (asked.ipv4) {
		tuple.ipv4.saddr = asked.peer_addr[3];
		tuple.ipv4.daddr = asked.local_addr[3];
		tuple.ipv4.sport = asked.peer_port;
		tuple.ipv4.dport = asked.local_port;
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4),
				       BPF_F_CURRENT_NETNS, 0);
	} else {
		copy_addr(tuple.ipv6.saddr, asked.peer_addr);
		copy_addr(tuple.ipv6.daddr, asked.local_addr);
		tuple.ipv6.sport = asked.peer_port;
		tuple.ipv6.dport = asked.local_port;
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv6),
				       BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	entry = bpf_sk_storage_get(&sock_state, sk, NULL, 0);
	if (entry) {
		__u64 word = READ_ONCE(entry->slot);

		*out = *entry;
		/* Someone is connecting it anew. */
		if (READ_ONCE(entry->slot) != word)
			out->slot = 0;
	}
	bpf_sk_release(sk);
	return 0;
}

char _license[] SEC("license") = "GPL";

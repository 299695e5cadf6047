/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Copyright The clustermesh Authors. */

/*
 * Every map, with its key and value. README.md says who writes what, and when
 * an entry may be reused. All addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d,
 * so that one path serves IPv4, IPv6 and IPv4-mapped sockets. __be16 and __be32
 * are in network order, everything else in the machine's.
 */

#ifndef __MESH_MAPS_H
#define __MESH_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* An address that clients connect to. */
struct vip_key {
	__be32 addr[4];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* A frontend. The key is whole, to tell whether the index was read in time. */
struct service_entry {
	struct vip_key key;
	__u32 affinity_s; /* how long a client stays with a backend; 0: not */
	__u64 descriptor; /* read once, written by one store; see below */
};

/* descriptor: where the slots are. base 28 bits, length 24, flags 12. */
#define DESCRIPTOR_BASE_BITS 28
#define DESCRIPTOR_LENGTH_BITS 24

/* Flag: if the agent's heartbeat is stale, leave the address to kube-proxy. */
#define SERVICE_HANDBACK 0x1

/* A slot is one share of a service: backend 24 bits, service 20, generation 20.
 */
#define SLOT_BACKEND_BITS 24
#define SLOT_SERVICE_BITS 20
#define SLOT_GENERATION_BITS 20

/* One endpoint behind one service port, in one cluster. */
struct backend_entry {
	__be32 addr[4];
	__be16 port;
	__u16 cluster;	  /* cluster ID, for people */
	__u32 service;	  /* index of the only service that may point here */
	__u32 generation; /* differs each time the entry is reused */
	__u8 state;	  /* desired.State, for people */
	__u8 used;	  /* the agent's: whether the entry is taken */
	/*
	 * Whether new connections may come here: the backend has slots. It
	 * tells those who go back to a backend of theirs without asking the
	 * slots.
	 */
	__u8 picked;
	__u8 pad;
};

/*
 * What the connections to one backend met: a line of a CPU's cache, so that
 * backends don't slow each other down. Counters only grow, until the entry is
 * another backend's.
 */
struct traffic_entry {
	/*
	 * The backend's, while it is counted for; 0 once nothing leads to it.
	 * Whoever has another one counts nothing: its backend is gone.
	 */
	__u32 generation;
	__u32 unmeasured;  /* of `established`: without a round trip's time */
	__u64 attempts;	   /* SYNs of new connections; of UDP, flows */
	__u64 established; /* what follows is of TCP alone */
	__u64 refused;	   /* ended by an answer that was no */
	__u64 timed_out;   /* given up without an answer, the SYN repeated */
	__u64 aborted;	   /* ended before either */
	__u64 closed;	   /* of `established`: not in that state any more */
	__u64 rtt_us;	   /* sum of the round trips of the handshakes */
};

/* What a socket was translated from, and to. */
struct sock_entry {
	__u64 slot; /* the slot word that was picked */
	struct vip_key vip;
	__be32 backend_addr[4];
	__be16 backend_port;
	__u16 pad;
};

/* How many backends a socket that is not connected remembers by itself. */
#define SENT_COUNT 8

/*
 * Where a socket that is not connected sends to, beside what it is connected
 * to. `slot` is 0 where a newer entry took over the frontend; such an entry
 * still tells who a late answer is from. Several threads may use one socket:
 * what is of more than one word is written and read under the lock.
 */
struct sent_entry {
	struct bpf_spin_lock lock;
	__u16 next;  /* the place that was not written for longest */
	__u16 spilt; /* whether `sent_more` has anything of the socket */
	struct sock_entry to[SENT_COUNT];
};

/* What did not fit into a sent_entry. */
struct sent_more_key {
	__u64 cookie; /* of the socket */
	__be32 addr[4];
	__be16 port;
	__u8 answer; /* 1: a backend, to find its frontend; 0: the reverse */
	__u8 pad;
	__u32 pad2;
};

struct sent_more_entry {
	__u64 slot;	    /* to a backend: the slot word */
	struct vip_key vip; /* from a backend: the frontend */
	__u32 pad;
};

/* A client of a service with session affinity: all of a network namespace. */
struct affinity_key {
	__u64 netns; /* cookie */
	__u32 service;
	__u32 pad;
};

struct affinity_entry {
	__u64 slot;    /* the slot word that was picked */
	__u64 used_ns; /* when it last was */
};

struct meta_entry {
	__u32 magic;
	__u32 schema;
	__u64 heartbeat_ns; /* CLOCK_MONOTONIC; 0 before the first */
};

struct service_name_entry {
	char namespace[64];
	char name[64];
	char port[64];
};

struct cluster_name_entry {
	char name[64];
};

/* What happened, per CPU. Numbers are never reused for another meaning. */
enum counter {
	COUNTER_TRANSLATED,   /* the address was replaced by a backend's */
	COUNTER_MISS,	      /* not a frontend of ours */
	COUNTER_NO_BACKEND,   /* a frontend of ours with nothing usable */
	COUNTER_HANDED_BACK,  /* left to kube-proxy: the heartbeat is stale */
	COUNTER_RETRY,	      /* a check failed and the lookup began again */
	COUNTER_GAVE_UP,      /* every try failed; the address was left alone */
	COUNTER_NO_REVERSE,   /* translated, but no storage for getpeername() */
	COUNTER_PEER_RENAMED, /* getpeername() answered with the frontend */
	COUNTER_SENT,	      /* a datagram went to a backend */
	COUNTER_SENT_SPILT, /* a socket had too many peers to remember itself */
	COUNTER_SENT_DENIED,  /* no storage: a datagram was left alone */
	COUNTER_FROM_RENAMED, /* a datagram came from a backend: frontend shown
			       */
	COUNTER_AFFINE, /* session affinity led to the backend of before */
	COUNTER_OPTED_OUT,    /* the address was left alone, as the pod wants it */
	COUNTER_COUNT,
};

/* Finds a frontend's index in `service`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct vip_key);
	__type(value, __u32);
	__uint(max_entries, 1);
} vip SEC(".maps");

/* Says where a frontend's slots are. Index 0 is never used. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct service_entry);
	__uint(max_entries, 1);
} service SEC(".maps");

/* The shares of every service, each service in a range of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} slots SEC(".maps");

/* Where connections go. Index 0 is never used. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend_entry);
	__uint(max_entries, 1);
} backends SEC(".maps");

/* Counts what connections met, by backend, under the same numbers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct traffic_entry);
	__uint(max_entries, 1);
} traffic SEC(".maps");

/* Remembers, as long as the socket lives, what was translated. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_entry);
} sock_state SEC(".maps");

/* Remembers, as long as the socket lives, where its datagrams went. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sent_entry);
} sock_sent SEC(".maps");

/*
 * Remembers what sockets with more than SENT_COUNT peers have no room for.
 * Full, it forgets what was not used for longest: that peer's next datagram may
 * go to another backend, and its late answers show the backend.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct sent_more_key);
	__type(value, struct sent_more_entry);
	__uint(max_entries, 16384);
} sent_more SEC(".maps");

/*
 * Remembers the backends of clients of services with session affinity. Full, it
 * forgets the client that was quiet for longest, which gets a backend anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity_entry);
	__uint(max_entries, 16384);
} affinity SEC(".maps");
/*
 * How deep in the tree of cgroups a pod's may be. Beyond the root of level 0, a
 * kubelet makes at most three levels; what it runs in itself may be some more.
 */
#define OPTOUT_LEVELS 16

/* The cgroups of pods that want to be left alone, by ID. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, 4096);
} optout SEC(".maps");

/*
 * The levels of the tree of cgroups that those are on, as bits. 0, as on most
 * nodes, spares everybody the search.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} optout_levels SEC(".maps");

/* Marks the maps as ours, of one schema, and carries the agent's heartbeat. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct meta_entry);
	__uint(max_entries, 1);
} meta SEC(".maps");

/* Counts what happened. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, enum counter);
	__type(value, __u64);
	__uint(max_entries, COUNTER_COUNT);
} counters SEC(".maps");

/* Names a service index, for people. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct service_name_entry);
	__uint(max_entries, 1);
} service_name SEC(".maps");

/* Names a cluster ID, for people. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct cluster_name_entry);
	__uint(max_entries, 4096);
} cluster_name SEC(".maps");

#endif

// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// Copyright The clustermesh Authors.

/*
 * The life of a TCP connection: what became of it is counted for its backend.
 * Nothing is decided here, and no packet of an established connection comes by.
 *
 * The kernel calls for every TCP socket of the cgroup at some five moments of
 * its first packets; of those, only the SYN counts here. For a socket that we
 * know, changes of its state are asked for then, and three count: established,
 * failed before that, and not established any more. That last one is what makes
 * the number of open connections right, and costs nothing until it comes: a
 * connection that lives changes no state. So the request stays for as long as
 * the socket, for two more calls in an ordinary end: there is one bit for all
 * programs, and it would be taken from those that want it as well.
 */

#include "lib/common.h"
#include "lib/reverse.h"
#include "lib/traffic.h"

/*
 * The SYN is about to be sent. If the request is refused, or lost because
 * another program writes over it, the connection is an attempt of which no more
 * is known.
 */
static __always_inline void begin(struct bpf_sock_ops *ctx)
{
	struct traffic_entry *entry = traffic_of(noted_slot(ctx));

	if (!entry)
		return;
	ADD(entry->attempts, 1);
	bpf_sock_ops_cb_flags_set(ctx, READ_ONCE(ctx->bpf_sock_ops_cb_flags) |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void establish(struct bpf_sock_ops *ctx,
				      struct traffic_entry *entry)
{
	__u32 rtt_us_8 = READ_ONCE(ctx->srtt_us); /* in eighths */

	ADD(entry->established, 1);
	/* A SYN that was repeated has none, unless there are timestamps. */
	if (rtt_us_8)
		ADD(entry->rtt_us, rtt_us_8 >> 3);
	else
		ADD(entry->unmeasured, 1);
}

/*
 * There was no connection. Whatever came from the other side before that was a
 * RST. Without that, whoever has waited for longer than the first timeout, a
 * second, gave up on a backend that does not answer, be it the kernel or the
 * application; whoever has not may have changed their mind, or an ICMP error
 * has come.
 */
static __always_inline void fail(struct bpf_sock_ops *ctx,
				 struct traffic_entry *entry)
{
	if (READ_ONCE(ctx->segs_in))
		ADD(entry->refused, 1);
	else if (READ_ONCE(ctx->total_retrans))
		ADD(entry->timed_out, 1);
	else
		ADD(entry->aborted, 1);
}

static __always_inline void change(struct bpf_sock_ops *ctx, __u32 from,
				   __u32 to)
{
	struct traffic_entry *entry;

	/* Of others: what comes after, and what listens. */
	if (from != BPF_TCP_ESTABLISHED && from != BPF_TCP_SYN_SENT &&
	    from != BPF_TCP_SYN_RECV)
		return;
	entry = traffic_of(noted_slot(ctx));
	if (!entry)
		return;
	if (from == BPF_TCP_ESTABLISHED)
		ADD(entry->closed, 1);
	else if (to == BPF_TCP_ESTABLISHED)
		establish(ctx, entry);
	else if (to == BPF_TCP_CLOSE)
		fail(ctx, entry);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	switch (READ_ONCE(ctx->op)) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		begin(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		change(ctx, READ_ONCE(ctx->args[0]), READ_ONCE(ctx->args[1]));
		break;
	}
	/* `reply` is left as it is: it belongs to all programs, too. */
	return PROCEED;
}

char _license[] SEC("license") = "GPL";

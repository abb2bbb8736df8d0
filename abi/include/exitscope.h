/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/* The interface of /dev/exitscope for C: the layout of the mapped counters, as abi/src/region.rs has it, and ioctls. */
#ifndef EXITSCOPE_H
#define EXITSCOPE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define EXITSCOPE_CELL_SIZE 512
#define EXITSCOPE_MAGIC 0x706f637374697865ULL /* "exitscop" */
#define EXITSCOPE_VERSION 3
#define EXITSCOPE_BUCKETS 55
#define EXITSCOPE_FIELDS_PER_CELL 15

/* What a cell holds. */
enum exitscope_kind {
	EXITSCOPE_FREE = 0,
	EXITSCOPE_HEADER = 1,	/* in a schema only; cell 0 has no head */
	EXITSCOPE_VM = 2,
	EXITSCOPE_VCPU = 3,
	EXITSCOPE_COUNTERS = 4,
	EXITSCOPE_OVERFLOW = 5,	/* counters of exits that found no room under their own code */
	EXITSCOPE_BASELINE = 6,	/* counters as they were at the last reset */
	EXITSCOPE_SCHEMA = 7,
};

enum exitscope_state {
	EXITSCOPE_LIVE = 0,
	EXITSCOPE_FINISHED = 1,
	EXITSCOPE_RETIRED = 2,	/* with all others in this state, the sum of VMs that are not kept apart */
};

/* Cell 0. */
struct exitscope_header {
	__u64 magic;
	__u32 version;
	__u32 cell_size;
	__u32 cells;
	__u32 flags;		/* bit 0: memory was short */
	__u32 tsc_khz;
	__u32 isa;		/* 1 VMX, 2 SVM, 0 before the first event */
	__u64 unaccounted;
	__u32 moves;		/* odd: read again later */
	__u32 resets;		/* odd: read again later */
	__u32 max_cells;
	__u32 used_cells;
	__u32 schema;
	__u32 schema_cells;
};

struct exitscope_head {
	__u16 kind;
	__u16 state;
	__u32 generation;
	__u32 owner;
	__u32 code;
};

struct exitscope_vm {
	struct exitscope_head head;
	__u64 id;
	__u32 pid;
	__u32 expose;
};

struct exitscope_vcpu {
	struct exitscope_head head;
	__u64 unannounced;
	__u64 backwards;
	__u32 id;
	__u32 thread;		/* that of the first exit; 0 for the sum of retired VMs */
};

/* Cycles are ticks of the host's time stamp counter from an exit to the vCPU's next entry. */
struct exitscope_counters {
	struct exitscope_head head;
	__u64 exits;
	__u64 cycles;
	__u64 min;
	__u64 max;
	__u64 user;		/* parts of cycles that do not overlap; the rest is the kernel's */
	__u64 halted;		/* without halt polling */
	__u64 polled;
	__u64 histogram[EXITSCOPE_BUCKETS];	/* 0: to 511 cycles; i: from 2^(i+8) */
};

/* One field of one of these structures. */
struct exitscope_field {
	__u16 kind;
	__u16 offset;
	__u16 width;
	__u16 count;
	char name[24];		/* filled up with zeroes */
};

struct exitscope_schema {
	struct exitscope_head head;
	__u64 reserved[2];
	struct exitscope_field fields[EXITSCOPE_FIELDS_PER_CELL];
};

/* Whose exits the guest of a VM is told. */
#define EXITSCOPE_EXPOSE_OFF 0
#define EXITSCOPE_EXPOSE_VM 1
#define EXITSCOPE_EXPOSE_HOST 2
#define EXITSCOPE_EXPOSE_AS_MODULE 0xffffffffU

struct exitscope_policy {
	__u64 vm;		/* exitscope_vm.id; a process, for EXITSCOPE_SET_PROCESS_POLICY */
	__u32 expose;
	__u32 reserved;		/* 0 */
};

/*
 * All want the device opened for writing (EBADF). EXITSCOPE_SET_POLICY: EINVAL for an unknown policy or reserved other
 * than 0, ENOENT where no live VM has that number, EFAULT. EXITSCOPE_SET_PROCESS_POLICY is for all VMs of a process,
 * those that have not exited yet included: the same, ESRCH where there is no such process, ENOSPC where too many have a
 * policy. EXITSCOPE_RESET makes what has been counted until now the baseline that readers may subtract: ENOMEM, EINTR. A reset
 * and a policy that shows the whole host want CAP_SYS_ADMIN (EPERM). Anything else: ENOTTY.
 */
#define EXITSCOPE_SET_POLICY _IOW('e', 0xe0, struct exitscope_policy)
#define EXITSCOPE_RESET _IO('e', 0xe1)
#define EXITSCOPE_SET_PROCESS_POLICY _IOW('e', 0xe2, struct exitscope_policy)

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* The border between C and Rust: above, what Rust calls (declared again in src/ffi.rs); below, what C calls. */
#ifndef EXITSCOPE_SHIM_H
#define EXITSCOPE_SHIM_H

#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <linux/types.h>

/* KVM's struct vcpu_svm, in no header, begins with its struct kvm_vcpu, followed by the pointer to the current VMCB. */
#define VMCB_POINTER ALIGN(sizeof(struct kvm_vcpu), sizeof(void *))

/* 0 if all that we take for granted of kvm, and of the vendor's part, holds. -ENOENT: BTF has no such part. */
int exitscope_prove(bool svm);
/* Where struct vcpu_vmx has the exit reason, and which bit of a vCPU's registers stands for RIP: found by BTF. */
extern u32 exitscope_vmx_exit_reason, exitscope_rip_bit;

/* Which vendor's part of KVM this machine has, or why it is none for us. */
int exitscope_choose_vendor(void);
/* Has the functions below called whenever that part is there, until it is told to stop. */
int exitscope_start_watching(void);
void exitscope_stop_watching(void);

/* Opens a file to read as init would: who loads the module may be in a chroot. */
struct file *exitscope_open(const char *path);

DECLARE_PER_CPU(const void *, exitscope_current);

void exitscope_set_current(const void *slot);
unsigned long exitscope_lock(void);
void exitscope_unlock(unsigned long flags);
void *exitscope_page_alloc(void);
void exitscope_page_free(void *page);
void exitscope_refill(void);
void exitscope_refill_at_once(void);
void exitscope_vcpu_sync_regs(struct kvm_vcpu *vcpu);
u32 exitscope_current_process(void);
u32 exitscope_current_thread(void);

/* Time of halts, in ns. */
struct exitscope_halt_stats {
	u64 polled;
	u64 waited;
};

struct exitscope_halt_stats exitscope_vcpu_halt_stats(struct kvm_vcpu *vcpu);
u32 exitscope_most_pages(void);
u32 exitscope_most_pages_of_vm(void);
const struct pid *exitscope_current_pid(void);
bool exitscope_pid_is_dead(struct pid *pid);
void exitscope_put_pid(struct pid *pid);
u32 exitscope_tsc_khz(void);
void exitscope_bug(void) __noreturn;

/* What is where: an expression as of C, and a place in bytes, whose offset is compared or, if there is room, found. */
struct exitscope_fact {
	const char *what;
	u32 offset;
	u32 size;
	u32 *found;
};

size_t exitscope_proven(const void *kernel, size_t kernel_size, const void *module, size_t module_size,
			const struct exitscope_fact *facts, size_t count, struct exitscope_fact *found);
int exitscope_start(void);
void exitscope_stop(void);
void exitscope_on_svm_exit(void *data, struct kvm_vcpu *vcpu, u32 isa);
void exitscope_on_vmx_exit(void *data, struct kvm_vcpu *vcpu, u32 isa);
void exitscope_on_entry(void *data, struct kvm_vcpu *vcpu);
void exitscope_on_run(struct kvm_vcpu *vcpu);
void exitscope_on_return(struct kvm_vcpu *vcpu);
void exitscope_on_halt(struct kvm_vcpu *vcpu);
void exitscope_on_block(struct kvm_vcpu *vcpu);
void exitscope_on_destroy(struct kvm_vcpu *vcpu);
void *exitscope_region_page(unsigned long number);
int exitscope_set_policy(u64 vm, u32 expose);
int exitscope_set_process_policy(struct pid *pid, u32 number, u32 expose);
bool exitscope_shows_host(u32 expose);
void exitscope_note_tsc_khz(void);
int exitscope_reset(void);
int exitscope_set_expose(const char *text, size_t length, bool may_show_host);
int exitscope_set_layout(const char *text, size_t length);
const char *exitscope_get_expose(size_t *length);
const char *exitscope_get_layout(size_t *length);

#endif

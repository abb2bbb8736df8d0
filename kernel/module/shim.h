/* SPDX-License-Identifier: GPL-2.0-only */
/* The border between C and Rust: above, what Rust calls (declared again in src/ffi.rs); below, what C calls. */
#ifndef EXITSCOPE_SHIM_H
#define EXITSCOPE_SHIM_H

#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <linux/types.h>

/* KVM's struct vcpu_svm, in no header, begins with its struct kvm_vcpu, followed by the pointer to the current VMCB. */
#define VMCB_POINTER ALIGN(sizeof(struct kvm_vcpu), sizeof(void *))

/* 0 if all that we take for granted of kvm, and of kvm_amd, holds. -ENOENT: kvm_amd is not there, or has no BTF. */
int exitscope_prove(bool svm);

/* Opens a file to read as init would: who loads the module may be in a chroot. */
struct file *exitscope_open(const char *path);

DECLARE_PER_CPU(const void *, exitscope_current);

void exitscope_set_current(const void *slot);
unsigned long exitscope_lock(void);
void exitscope_unlock(unsigned long flags);
void *exitscope_page_alloc(void);
void exitscope_page_free(void *page);
void *exitscope_alloc(size_t size);
void exitscope_free(void *memory);
struct kvm *exitscope_vcpu_vm(struct kvm_vcpu *vcpu);
u32 exitscope_vcpu_id(struct kvm_vcpu *vcpu);
bool exitscope_vcpu_answerable(struct kvm_vcpu *vcpu);
bool exitscope_vcpu_rip(struct kvm_vcpu *vcpu, u64 *rip);
u32 exitscope_vm_pid(struct kvm *vm);
u32 exitscope_current_thread(void);

/* Time of halts, in ns. */
struct exitscope_halt_stats {
	u64 polled;
	u64 waited;
};

struct exitscope_halt_stats exitscope_vcpu_halt_stats(struct kvm_vcpu *vcpu);
u32 exitscope_most_pages(void);
u32 exitscope_tsc_khz(void);
void exitscope_bug(void) __noreturn;

/* What is where: an expression as of C, a place in bytes. */
struct exitscope_fact {
	const char *what;
	u32 offset;
	u32 size;
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
int exitscope_reset(void);
int exitscope_set_expose(const char *text, size_t length);
int exitscope_set_layout(const char *text, size_t length);
const char *exitscope_get_expose(size_t *length);
const char *exitscope_get_layout(size_t *length);

#endif

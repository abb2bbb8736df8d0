// SPDX-License-Identifier: GPL-2.0-only
/* What only kernel headers can say: tracepoints, a lock, memory, the character device. Decisions are in src/. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <asm/hypervisor.h>
#include <asm/svm.h>
#include <asm/tsc.h>
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/version.h>

#include "shim.h"

/* An offset as the address of a symbol: Rust's code has it as an immediate, as C's would. */
#define OFFSET(name, value) \
	asm(".globl " #name "\n.set " #name ", %c0" :: "i"(value))

static void __used offsets(void)
{
	/* KVM's struct vcpu_svm begins with its struct kvm_vcpu, followed by the pointer to the current VMCB. */
	OFFSET(exitscope_vmcb_pointer, ALIGN(sizeof(struct kvm_vcpu), sizeof(void *)));
	OFFSET(exitscope_vcpu_regs, offsetof(struct kvm_vcpu, arch.regs));
}
static_assert(offsetof(struct vmcb, control.exit_code) == 0x70);
/* As src/probe.rs has them. */
static_assert(VCPU_REGS_RAX == 0 && VCPU_REGS_RCX == 1 && VCPU_REGS_RDX == 2 && VCPU_REGS_RBX == 3);
static_assert(VCPU_REGS_RIP < ARRAY_SIZE(((struct kvm_vcpu *)0)->arch.regs));

DEFINE_PER_CPU(const void *, exitscope_current);

void exitscope_set_current(const void *slot)
{
	int cpu;

	for_each_possible_cpu(cpu)
		per_cpu(exitscope_current, cpu) = slot;
}

static DEFINE_RAW_SPINLOCK(lock);

unsigned long exitscope_lock(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&lock, flags);
	return flags;
}

void exitscope_unlock(unsigned long flags)
{
	raw_spin_unlock_irqrestore(&lock, flags);
}

void *exitscope_page_alloc(void)
{
	return (void *)get_zeroed_page(GFP_NOWAIT | __GFP_NOWARN);
}

void exitscope_page_free(void *page)
{
	free_page((unsigned long)page);
}

void *exitscope_alloc(size_t size)
{
	/* Sizes that are a power of two are aligned to it, so the multiple of 64 that callers need always holds. */
	return kzalloc(roundup_pow_of_two(size), GFP_NOWAIT | __GFP_NOWARN);
}

void exitscope_free(void *memory)
{
	kfree(memory);
}

struct kvm *exitscope_vcpu_vm(struct kvm_vcpu *vcpu)
{
	return vcpu->kvm;
}

u32 exitscope_vcpu_id(struct kvm_vcpu *vcpu)
{
	return vcpu->vcpu_id;
}

bool exitscope_vcpu_protected(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.guest_state_protected;
}

bool exitscope_vcpu_rip(struct kvm_vcpu *vcpu, u64 *rip)
{
	if (!(vcpu->arch.regs_avail & BIT(VCPU_REGS_RIP)))
		return false;
	*rip = vcpu->arch.regs[VCPU_REGS_RIP];
	return true;
}

u32 exitscope_vm_pid(struct kvm *vm)
{
	return vm->userspace_pid;
}

u32 exitscope_tsc_khz(void)
{
	return tsc_khz;
}

void exitscope_bug(void)
{
	BUG();
}

/* ---- parameters ---- */

static int set_expose(const char *text, const struct kernel_param *param)
{
	int err = exitscope_set_expose(text, strcspn(text, "\n"));

	if (err)
		pr_err("expose=%s: want off, vm or host\n", text);
	return err;
}

static int get_expose(char *text, const struct kernel_param *param)
{
	size_t length;
	const char *name = exitscope_get_expose(&length);

	return sysfs_emit(text, "%.*s\n", (int)length, name);
}

static int set_layout(const char *text, const struct kernel_param *param)
{
	int err = exitscope_set_layout(text, strcspn(text, "\n"));

	if (err)
		pr_err("layout=%s: want classic, reordered or combined\n", text);
	return err;
}

static int get_layout(char *text, const struct kernel_param *param)
{
	size_t length;
	const char *name = exitscope_get_layout(&length);

	return sysfs_emit(text, "%.*s\n", (int)length, name);
}

static const struct kernel_param_ops expose_ops = { .set = set_expose, .get = get_expose };
static const struct kernel_param_ops layout_ops = { .set = set_layout, .get = get_layout };
module_param_cb(expose, &expose_ops, NULL, 0644);
MODULE_PARM_DESC(expose, "whose exits a guest is told by CPUID: off, vm (its own VM's, the default), host (everyone's)");
module_param_cb(layout, &layout_ops, NULL, 0644);
MODULE_PARM_DESC(layout, "numbering of the leaves 0x4ffffffc-0x4fffffff: classic (the default), reordered, combined");

/* ---- /dev/exitscope: the region, mapped read-only ---- */

static vm_fault_t region_fault(struct vm_fault *fault)
{
	void *page = exitscope_region_page(fault->pgoff);

	if (!page)
		return VM_FAULT_SIGBUS;
	fault->page = virt_to_page(page);
	get_page(fault->page);
	return 0;
}

static const struct vm_operations_struct region_ops = { .fault = region_fault };

static int region_mmap(struct file *file, struct vm_area_struct *area)
{
	if (area->vm_flags & VM_WRITE)
		return -EACCES;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
	area->vm_flags = (area->vm_flags & ~(VM_MAYWRITE | VM_MAYEXEC)) | VM_DONTEXPAND | VM_DONTDUMP;
#else
	vm_flags_mod(area, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_MAYEXEC);
#endif
	area->vm_ops = &region_ops;
	return 0;
}

static const struct file_operations region_files = {
	.owner = THIS_MODULE,
	.mmap = region_mmap,
};

static struct miscdevice region_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "exitscope",
	.fops = &region_files,
	.mode = 0600,
};

/* ---- probes ---- */

/* Exported by kvm.ko; their declarations are in headers that distributions do not ship. */
extern struct tracepoint __tracepoint_kvm_exit, __tracepoint_kvm_entry;

static int vcpu_destroyed(struct kprobe *probe, struct pt_regs *regs)
{
	exitscope_vcpu_destroyed((struct kvm_vcpu *)regs->di);
	return 0;
}

static struct kprobe destroy_probe = {
	.symbol_name = "kvm_arch_vcpu_destroy",
	.pre_handler = vcpu_destroyed,
};

static void *on_exit;

static int __init exitscope_init(void)
{
	int err;

	/* Refused here and not by the build, which would fail the installation of such a kernel beside ours (DKMS). */
	if (IS_ENABLED(CONFIG_CFI_CLANG) || IS_ENABLED(CONFIG_CFI)) {
		pr_err("a kernel with CFI is not supported: our probes carry no type hashes\n");
		return -EOPNOTSUPP;
	}
	if (IS_ENABLED(CONFIG_PREEMPT_RT)) {
		pr_err("a kernel with PREEMPT_RT is not supported: our probes allocate memory\n");
		return -EOPNOTSUPP;
	}
	if (boot_cpu_has(X86_FEATURE_SVM)) {
		on_exit = exitscope_on_svm_exit;
	} else if (hypervisor_is_type(X86_HYPER_MS_HYPERV)) {
		/* KVM may keep its VMCS in memory there (enlightened VMCS), where VMREAD does not find it. */
		pr_err("VMX under Hyper-V is not supported\n");
		return -EOPNOTSUPP;
	} else if (boot_cpu_has(X86_FEATURE_VMX)) {
		on_exit = exitscope_on_vmx_exit;
	} else {
		pr_err("this CPU has neither SVM nor VMX\n");
		return -ENODEV;
	}
	err = exitscope_start();
	if (err)
		return err;
	err = register_kprobe(&destroy_probe);
	if (err) {
		pr_err("this kernel's kvm has no %s to probe (%d)\n", destroy_probe.symbol_name, err);
		goto stop;
	}
	err = tracepoint_probe_register(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	if (err)
		goto probe;
	err = tracepoint_probe_register(&__tracepoint_kvm_exit, on_exit, NULL);
	if (err)
		goto entry;
	/* Last: who has opened it would keep using a module that fails to load. */
	err = misc_register(&region_device);
	if (!err)
		return 0;
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit, NULL);
entry:
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	tracepoint_synchronize_unregister();
probe:
	unregister_kprobe(&destroy_probe);
stop:
	exitscope_stop();
	return err;
}

/* The device is not open here, as it holds the module. A guest may be running: it goes on without us. */
static void __exit exitscope_exit(void)
{
	misc_deregister(&region_device);
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit, NULL);
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	tracepoint_synchronize_unregister();
	unregister_kprobe(&destroy_probe);
	exitscope_stop();
}

module_init(exitscope_init);
module_exit(exitscope_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Counts and times every KVM exit, per VM, vCPU and reason, and answers the guest's CPUID");
MODULE_VERSION("0.1.0");

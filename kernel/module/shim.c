// SPDX-License-Identifier: GPL-2.0-only
/* What only kernel headers can say: tracepoints, a lock, memory, the character device. Decisions are in src/. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <asm/hypervisor.h>
#include <asm/svm.h>
#include <asm/tsc.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "exitscope.h"
#include "shim.h"

/* Built by make MISCOUNT=1, for self-tests to detect. */
#define COUNTS_WRONGLY IS_ENABLED(EXITSCOPE_MISCOUNTS)

/* As abi/src/region.rs has it. */
#define EXITSCOPE_MAX_PAGES 16384

/* Where KVM holds the guest's RIP between exit and entry, and whether it does. Where this is wrong, it does not build. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 2, 0)
#define RIP arch.regs[VCPU_REGS_RIP]
#define RIP_IS_HELD(vcpu) ((vcpu)->arch.regs_avail & BIT(VCPU_REGS_RIP))
#else
#define RIP arch.rip
#define RIP_IS_HELD(vcpu) test_bit(VCPU_REG_RIP, (vcpu)->arch.regs_avail)
#endif

/* An offset as the address of a symbol: Rust's code has it as an immediate, as C's would. */
#define OFFSET(name, value) \
	asm(".globl " #name "\n.set " #name ", %c0" :: "i"(value))

static void __used offsets(void)
{
	OFFSET(exitscope_vmcb_pointer, VMCB_POINTER);
	OFFSET(exitscope_vcpu_regs, offsetof(struct kvm_vcpu, arch.regs));
}
static_assert(offsetof(struct vmcb, control.exit_code) == 0x70);
/* As src/probe.rs has them. */
static_assert(VCPU_REGS_RAX == 0 && VCPU_REGS_RCX == 1 && VCPU_REGS_RDX == 2 && VCPU_REGS_RBX == 3);

DEFINE_PER_CPU(const void *, exitscope_current);

void exitscope_set_current(const void *slot)
{
	int cpu;

	for_each_possible_cpu(cpu)
		per_cpu(exitscope_current, cpu) = slot;
}

static DEFINE_SPINLOCK(lock);

unsigned long exitscope_lock(void)
{
	unsigned long flags;

	spin_lock_irqsave(&lock, flags);
	return flags;
}

void exitscope_unlock(unsigned long flags)
{
	spin_unlock_irqrestore(&lock, flags);
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

bool exitscope_vcpu_answerable(struct kvm_vcpu *vcpu)
{
	return !vcpu->arch.guest_state_protected && !(vcpu->arch.hflags & HF_GUEST_MASK);
}

bool exitscope_vcpu_rip(struct kvm_vcpu *vcpu, u64 *rip)
{
	if (!RIP_IS_HELD(vcpu))
		return false;
	*rip = vcpu->RIP;
	return true;
}

u32 exitscope_vm_pid(struct kvm *vm)
{
	return vm->userspace_pid;
}

u32 exitscope_current_thread(void)
{
	return task_pid_nr(current);
}

/* KVM's own clock of kvm_vcpu_halt(): polling, whether it found a wake-up or not, and waiting. */
struct exitscope_halt_stats exitscope_vcpu_halt_stats(struct kvm_vcpu *vcpu)
{
	const struct kvm_vcpu_stat_generic *stat = &vcpu->stat.generic;

	return (struct exitscope_halt_stats){
		.polled = stat->halt_poll_success_ns + stat->halt_poll_fail_ns,
		.waited = stat->halt_wait_ns,
	};
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

static unsigned int pages = EXITSCOPE_MAX_PAGES;
module_param(pages, uint, 0444);
MODULE_PARM_DESC(pages, "the most memory that counters may take, in pages of 4 KiB: 2 to 16384 (the default)");

u32 exitscope_most_pages(void)
{
	return pages;
}

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
	if (area->vm_flags & (VM_WRITE | VM_EXEC))
		return -EACCES;
	if (area->vm_pgoff >= EXITSCOPE_MAX_PAGES || vma_pages(area) > EXITSCOPE_MAX_PAGES - area->vm_pgoff)
		return -EINVAL;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
	area->vm_flags = (area->vm_flags & ~(VM_MAYWRITE | VM_MAYEXEC)) | VM_DONTEXPAND | VM_DONTDUMP;
#else
	vm_flags_mod(area, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_MAYEXEC);
#endif
	area->vm_ops = &region_ops;
	return 0;
}

static long region_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	static DEFINE_MUTEX(resetting);
	struct exitscope_policy policy;
	long err;

	if (request != EXITSCOPE_SET_POLICY && request != EXITSCOPE_RESET)
		return -ENOTTY;
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (request == EXITSCOPE_SET_POLICY) {
		if (copy_from_user(&policy, (void __user *)argument, sizeof(policy)))
			return -EFAULT;
		return policy.reserved ? -EINVAL : exitscope_set_policy(policy.vm, policy.expose);
	}
	if (mutex_lock_interruptible(&resetting))
		return -EINTR;
	err = exitscope_reset();
	mutex_unlock(&resetting);
	return err;
}

static const struct file_operations region_files = {
	.owner = THIS_MODULE,
	.mmap = region_mmap,
	.unlocked_ioctl = region_ioctl,
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

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_ARGS

#ifndef ftrace_regs_get_argument /* before 6.2 */
#define ftrace_regs_get_argument(fregs, n) regs_get_kernel_argument(&(fregs)->regs, n)
#endif

/* A function of KVM's whose first argument is the vCPU, and who is told of its calls. */
struct probe {
	/* Never armed: the kernel tells modules in no other way where a function is. */
	struct kprobe at;
	void (*call)(struct kvm_vcpu *vcpu);
};

#define PROBE(function, call) { { .symbol_name = function, .flags = KPROBE_FLAG_DISABLED }, call }

/* Those of every KVM_RUN first. */
static struct probe probes[] = {
	PROBE("kvm_arch_vcpu_ioctl_run", exitscope_on_run),
	PROBE("kvm_sigset_deactivate", exitscope_on_return),
	PROBE("kvm_vcpu_halt", exitscope_on_halt),
	PROBE("kvm_vcpu_block", exitscope_on_block),
	PROBE("kvm_arch_vcpu_destroy", exitscope_on_destroy),
};

static void notrace on_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		/* An ENDBR may come before the place that ftrace has in a function. */
		if (ip - (unsigned long)probes[i].at.addr < MCOUNT_INSN_SIZE) {
			probes[i].call((struct kvm_vcpu *)ftrace_regs_get_argument(regs, 0));
			break;
		}
	}
}

/*
 * Permanent, so that nobody switches it off by kernel.ftrace_enabled: a vCPU whose end goes unnoticed would leave its
 * account to the next one at its address.
 */
static struct ftrace_ops probing = { .func = on_call, .flags = FTRACE_OPS_FL_PERMANENT };

static int find_functions(unsigned long *addresses)
{
	struct kprobe *found[ARRAY_SIZE(probes)];
	int err = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		err = register_kprobe(&probes[i].at);
		if (err) {
			pr_err("this kernel's kvm has no %s to probe (%d)\n", probes[i].at.symbol_name, err);
			break;
		}
		found[i] = &probes[i].at;
		addresses[i] = (unsigned long)probes[i].at.addr;
	}
	unregister_kprobes(found, i);
	return err;
}

static int add_probes(void)
{
	unsigned long addresses[ARRAY_SIZE(probes)];
	int err = find_functions(addresses);

	if (err)
		return err;
	err = ftrace_set_filter_ips(&probing, addresses, ARRAY_SIZE(addresses), 0, 1) ?:
	      register_ftrace_function(&probing);
	if (!err)
		return 0;
	ftrace_free_filter(&probing);
	if (err == -EBUSY)
		pr_err("ftrace is switched off: sysctl kernel.ftrace_enabled=1\n");
	else
		pr_err("this kernel's kvm cannot be probed (%d)\n", err);
	return err;
}

static void remove_probes(void)
{
	unregister_ftrace_function(&probing);
	ftrace_free_filter(&probing);
}

#else

static void remove_probes(void)
{
}

static int add_probes(void)
{
	pr_err("a kernel without DYNAMIC_FTRACE_WITH_ARGS is not supported\n");
	return -EOPNOTSUPP;
}

#endif

static void *on_exit;
static DEFINE_MUTEX(attaching);
static bool attached;

static int attach(void)
{
	int err = tracepoint_probe_register(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);

	if (err)
		return err;
	err = tracepoint_probe_register(&__tracepoint_kvm_exit, on_exit, NULL);
	if (err) {
		tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
		tracepoint_synchronize_unregister();
	}
	attached = !err;
	return err;
}

static void detach(void)
{
	if (!attached)
		return;
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit, NULL);
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	tracepoint_synchronize_unregister();
	attached = false;
}

#define SVM "kvm_amd"

/* Attaches if kvm_amd is there and proven; waits for it if it is not there. */
static int attach_svm(bool is_there)
{
	int err = exitscope_prove(true);

	if (!err)
		return attach();
	if (err != -ENOENT)
		return err;
	if (!is_there)
		return 0;
	pr_err("there is no /sys/kernel/btf/" SVM ", which tells what struct vcpu_svm is like: this kernel is not supported\n");
	return -EOPNOTSUPP;
}

/* kvm_amd comes and goes beneath us. It has no guests before it has come, and none when it goes. */
static int svm_event(struct notifier_block *self, unsigned long event, void *data)
{
	struct module *module = data;

	if (strcmp(module->name, SVM))
		return NOTIFY_DONE;
	mutex_lock(&attaching);
	if (event == MODULE_STATE_COMING && !attached && attach_svm(true))
		pr_err("exits of its guests are not counted\n");
	if (event == MODULE_STATE_GOING)
		detach();
	mutex_unlock(&attaching);
	return NOTIFY_OK;
}

static struct notifier_block svm_notifier = { .notifier_call = svm_event };

static bool svm_is_there(void)
{
	struct file *file = exitscope_open("/sys/module/" SVM "/initstate");

	if (IS_ERR(file))
		return false;
	filp_close(file, NULL);
	return true;
}

static void stop_watching(void)
{
	if (boot_cpu_has(X86_FEATURE_SVM))
		unregister_module_notifier(&svm_notifier);
	detach();
}

static int start_watching(void)
{
	int err;

	if (!boot_cpu_has(X86_FEATURE_SVM))
		return exitscope_prove(false) ?: attach();
	err = register_module_notifier(&svm_notifier);
	if (err)
		return err;
	mutex_lock(&attaching);
	if (!attached)
		err = attach_svm(svm_is_there());
	mutex_unlock(&attaching);
	/* kvm_amd may have come in the meantime. */
	if (err)
		stop_watching();
	return err;
}

static int choose_vendor(void)
{
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
	return 0;
}

static int __init exitscope_init(void)
{
	int err = choose_vendor() ?: exitscope_start();

	if (err)
		return err;
	if (COUNTS_WRONGLY)
		pr_warn("this build counts wrongly, on purpose: it is for self-tests only\n");
	err = add_probes();
	if (err)
		goto stop;
	err = start_watching();
	if (err)
		goto probe;
	/* Last: who has opened it would keep using a module that fails to load. */
	err = misc_register(&region_device);
	if (!err)
		return 0;
	stop_watching();
probe:
	remove_probes();
stop:
	exitscope_stop();
	return err;
}

/* The device is not open here, as it holds the module. A guest may be running: it goes on without us. */
static void __exit exitscope_exit(void)
{
	misc_deregister(&region_device);
	stop_watching();
	remove_probes();
	exitscope_stop();
}

module_init(exitscope_init);
module_exit(exitscope_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Counts and times every KVM exit, per VM, vCPU and reason, and answers the guest's CPUID");
#ifdef EXITSCOPE_MISCOUNTS
MODULE_VERSION("0.1.0-miscount");
#else
MODULE_VERSION("0.1.0");
#endif

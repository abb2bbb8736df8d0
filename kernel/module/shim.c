// SPDX-License-Identifier: GPL-2.0-only
/* What only kernel headers can say: a vCPU's fields, a lock, memory, the character device. Decisions are in src/. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/threads.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include <asm/svm.h>
#include <asm/tsc.h>

#include "exitscope.h"
#include "shim.h"

/* As abi/src/region.rs has it. */
#define EXITSCOPE_MAX_PAGES 16384

/* What no header and no BTF names where KVM is built without SMM. */
#ifdef HF_SMM_MASK
#define EXITSCOPE_SMM HF_SMM_MASK
#else
#define EXITSCOPE_SMM 0
#endif

/* An offset as the address of a symbol: Rust's code has it as an immediate, as C's would. */
#define OFFSET(name, value) \
	asm(".globl " #name "\n.set " #name ", %c0" :: "i"(value))

static void __used offsets(void)
{
	OFFSET(exitscope_vmcb_pointer, VMCB_POINTER);
	OFFSET(exitscope_vcpu_vm, offsetof(struct kvm_vcpu, kvm));
	OFFSET(exitscope_vcpu_id, offsetof(struct kvm_vcpu, vcpu_id));
	OFFSET(exitscope_vcpu_regs, offsetof(struct kvm_vcpu, arch.regs));
	OFFSET(exitscope_vcpu_hflags, offsetof(struct kvm_vcpu, arch.hflags));
	OFFSET(exitscope_vcpu_regs_dirty, offsetof(struct kvm_vcpu, arch.regs_dirty));
	OFFSET(exitscope_vcpu_is_protected, offsetof(struct kvm_vcpu, arch.guest_state_protected));
	/* Not offsets, but bits of hflags. */
	OFFSET(exitscope_nested, HF_GUEST_MASK);
	OFFSET(exitscope_smm, EXITSCOPE_SMM);
}
static_assert(offsetof(struct vmcb, control.exit_code) == 0x70);
/* As src/ffi.rs and src/probe.rs have them; facts.c proves them. */
static_assert(VCPU_REGS_RAX == 0 && VCPU_REGS_RCX == 1 && VCPU_REGS_RDX == 2 && VCPU_REGS_RBX == 3 && VCPU_REGS_RSP == 4);

DEFINE_PER_CPU(const void *, exitscope_current);

void exitscope_set_current(const void *slot)
{
	int cpu;

	for_each_possible_cpu(cpu)
		per_cpu(exitscope_current, cpu) = slot;
}

/* Raw, as probes are called with interrupts off also on PREEMPT_RT. */
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

/*
 * Zeroed pages that are ready, under the lock, within which the allocator is not called: it takes longer than all else that
 * is done there. Probes, which have interrupts off, call it only when hardly any page is left, and never on PREEMPT_RT,
 * where it may sleep.
 */
static void *ready[128];
static unsigned int ready_count;
/* Most that are taken before the lock is released: for a VM, a vCPU and their cells. */
#define TAKEN_AT_ONCE 3

static void fill(unsigned int least, gfp_t flags_of_allocation)
{
	while (READ_ONCE(ready_count) < least) {
		void *page = (void *)get_zeroed_page(flags_of_allocation | __GFP_NORETRY | __GFP_NOWARN);
		unsigned long flags;

		if (!page)
			return;
		flags = exitscope_lock();
		if (ready_count < ARRAY_SIZE(ready)) {
			ready[ready_count++] = page;
			page = NULL;
		}
		exitscope_unlock(flags);
		exitscope_page_free(page);
	}
}

void exitscope_refill(void)
{
	fill(ARRAY_SIZE(ready), GFP_KERNEL);
}

void exitscope_refill_at_once(void)
{
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		fill(TAKEN_AT_ONCE, GFP_NOWAIT);
}

static void refill(struct work_struct *work)
{
	exitscope_refill();
}

static DECLARE_WORK(refilling, refill);
/* Of its own, for no CPU in particular: a CPU may be busy with a vCPU of real-time priority for good. */
static struct workqueue_struct *refillers;

void *exitscope_page_alloc(void)
{
	if (ready_count < ARRAY_SIZE(ready) / 2)
		queue_work(refillers, &refilling);
	return ready_count ? ready[--ready_count] : NULL;
}

void exitscope_page_free(void *page)
{
	free_page((unsigned long)page);
}

/* When no probe can ask for a page any more. */
static void free_ready(void)
{
	destroy_workqueue(refillers);
	while (ready_count)
		exitscope_page_free(ready[--ready_count]);
}

/* KVM has shown the VMM its guest's registers already, if it wants them so (KVM_CAP_SYNC_REGS): shows them again. */
void exitscope_vcpu_sync_regs(struct kvm_vcpu *vcpu)
{
	struct kvm_regs *shown = &vcpu->run->s.regs.regs;

	if (!(vcpu->run->kvm_valid_regs & KVM_SYNC_X86_REGS))
		return;
	shown->rax = vcpu->arch.regs[VCPU_REGS_RAX];
	shown->rbx = vcpu->arch.regs[VCPU_REGS_RBX];
	shown->rcx = vcpu->arch.regs[VCPU_REGS_RCX];
	shown->rdx = vcpu->arch.regs[VCPU_REGS_RDX];
}

/* In the initial PID namespace, as KVM has it in a VM; but there it is the thread that created the VM. */
u32 exitscope_current_process(void)
{
	return task_tgid_nr(current);
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
	/* To show a guest the whole host takes more than the file's mode. */
	int err = exitscope_set_expose(text, strcspn(text, "\n"), capable(CAP_SYS_ADMIN));

	if (err == -EINVAL)
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

static unsigned int vm_pages;
module_param(vm_pages, uint, 0444);
MODULE_PARM_DESC(vm_pages, "the most memory that counters of one VM may take, in pages of 4 KiB (default 0: a quarter of all)");

u32 exitscope_most_pages(void)
{
	return pages;
}

u32 exitscope_most_pages_of_vm(void)
{
	return vm_pages;
}

const struct pid *exitscope_current_pid(void)
{
	return task_tgid(current);
}

bool exitscope_pid_is_dead(struct pid *pid)
{
	bool dead;

	rcu_read_lock();
	dead = !pid_task(pid, PIDTYPE_TGID);
	rcu_read_unlock();
	return dead;
}

void exitscope_put_pid(struct pid *pid)
{
	put_pid(pid);
}

#ifdef EXITSCOPE_VARIANT_holds
extern unsigned long exitscope_longest_hold;
module_param_named(longest_hold, exitscope_longest_hold, ulong, 0644);
#endif

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
#ifdef EXITSCOPE_HAS_VM_FLAGS_MOD
	vm_flags_mod(area, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_MAYEXEC);
#else
	area->vm_flags = (area->vm_flags & ~(VM_MAYWRITE | VM_MAYEXEC)) | VM_DONTEXPAND | VM_DONTDUMP;
#endif
	area->vm_ops = &region_ops;
	return 0;
}

/* The frequency may have been refined since the module was loaded. */
static int region_open(struct inode *inode, struct file *file)
{
	exitscope_note_tsc_khz();
	return 0;
}

/* By the number that the process has for the caller. */
static long set_process_policy(const struct exitscope_policy *policy)
{
	struct pid *pid = policy->vm <= PID_MAX_LIMIT ? find_get_pid(policy->vm) : NULL;
	long err = pid && !exitscope_pid_is_dead(pid) ? exitscope_set_process_policy(pid, pid_nr(pid), policy->expose) : -ESRCH;

	if (err)
		put_pid(pid);
	return err;
}

static long change_policy(unsigned int request, const void __user *argument)
{
	struct exitscope_policy policy;

	if (copy_from_user(&policy, argument, sizeof(policy)))
		return -EFAULT;
	if (policy.reserved)
		return -EINVAL;
	if (exitscope_shows_host(policy.expose) && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (request == EXITSCOPE_SET_PROCESS_POLICY)
		return set_process_policy(&policy);
	return exitscope_set_policy(policy.vm, policy.expose);
}

static long reset(void)
{
	static DEFINE_MUTEX(resetting);
	long err;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (mutex_lock_interruptible(&resetting))
		return -EINTR;
	err = exitscope_reset();
	mutex_unlock(&resetting);
	return err;
}

static long region_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	if (request != EXITSCOPE_SET_POLICY && request != EXITSCOPE_SET_PROCESS_POLICY && request != EXITSCOPE_RESET)
		return -ENOTTY;
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	return request == EXITSCOPE_RESET ? reset() : change_policy(request, (const void __user *)argument);
}

static const struct file_operations region_files = {
	.owner = THIS_MODULE,
	.open = region_open,
	.mmap = region_mmap,
	.unlocked_ioctl = region_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice region_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "exitscope",
	.fops = &region_files,
	.mode = 0600,
};

/* ---- the module itself ---- */

/* The parameters are there until we are gone, and to set one looks at all vCPUs. */
static void stop(void)
{
	kernel_param_lock(THIS_MODULE);
	exitscope_stop();
	kernel_param_unlock(THIS_MODULE);
}

static int __init exitscope_init(void)
{
	int err = exitscope_choose_vendor();

	if (err)
		return err;
	refillers = alloc_workqueue("exitscope", WQ_UNBOUND, 0);
	if (!refillers)
		return -ENOMEM;
	exitscope_refill();
	err = exitscope_start();
	if (err)
		goto memory;
#ifdef EXITSCOPE_VARIANT
	pr_warn("this is the build " EXITSCOPE_VARIANT ", which is for tests only\n");
#endif
	err = exitscope_start_watching();
	if (err)
		goto stop;
	/* Last: who has opened it would keep using a module that fails to load. */
	err = misc_register(&region_device);
	if (!err)
		return 0;
	exitscope_stop_watching();
stop:
	stop();
memory:
	free_ready();
	return err;
}

/* The device is not open here, as it holds the module. A guest may be running: it goes on without us. */
static void __exit exitscope_exit(void)
{
	misc_deregister(&region_device);
	exitscope_stop_watching();
	stop();
	free_ready();
}

module_init(exitscope_init);
module_exit(exitscope_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Counts and times every KVM exit, per VM, vCPU and reason, and answers the guest's CPUID");
#ifdef EXITSCOPE_VARIANT
MODULE_VERSION("0.1.0-" EXITSCOPE_VARIANT);
#else
MODULE_VERSION("0.1.0");
#endif

// SPDX-License-Identifier: GPL-2.0-only
/* Where KVM tells us of what happens: its tracepoints, hooks on its functions, and the vendor's part that comes and goes. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

#include <asm/cpufeature.h>

#include "shim.h"

/* Exported by kvm.ko; their declarations are in headers that distributions do not ship. */
extern struct tracepoint __tracepoint_kvm_exit, __tracepoint_kvm_entry;

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_ARGS

#ifndef ftrace_regs_get_argument /* before 6.2 */
#define ftrace_regs_get_argument(fregs, n) regs_get_kernel_argument(&(fregs)->regs, n)
#endif

/* A function of KVM's whose first argument is the vCPU, and who is told of its calls. */
struct hook {
	const char *function;
	void (*call)(struct kvm_vcpu *vcpu);
	unsigned long address;
};

/* Those of every KVM_RUN first. */
static struct hook hooks[] = {
	{ "kvm_arch_vcpu_ioctl_run", exitscope_on_run },
	{ "kvm_sigset_deactivate", exitscope_on_return },
	{ "kvm_vcpu_halt", exitscope_on_halt },
	{ "kvm_vcpu_block", exitscope_on_block },
	{ "kvm_arch_vcpu_destroy", exitscope_on_destroy },
};

static void notrace on_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		/* An ENDBR may come before the place that ftrace has in a function. */
		if (ip - hooks[i].address < MCOUNT_INSN_SIZE) {
			hooks[i].call((struct kvm_vcpu *)ftrace_regs_get_argument(regs, 0));
			break;
		}
	}
}

/*
 * Permanent, so that nobody switches it off by kernel.ftrace_enabled: a vCPU whose end goes unnoticed would leave its
 * account to the next one at its address.
 *
 * One for all: with one for each function, to attach and detach takes four times as long, as ftrace waits for all CPUs
 * each time. By address: given names, ftrace compares those of all functions that it knows, which takes 13 times as long.
 */
#define HOOKING { .func = on_call, .flags = FTRACE_OPS_FL_PERMANENT }
static struct ftrace_ops hooking = HOOKING;

/* ftrace frees the filter and keeps pointers to it: begins anew. Nobody has the hook then. */
static void free_hooking(void)
{
	ftrace_free_filter(&hooking);
	hooking = (struct ftrace_ops)HOOKING;
}

/* Kprobes that are never armed: the kernel tells modules in no other way where a function is. */
static int find_functions(unsigned long *addresses)
{
	static struct kprobe probes[ARRAY_SIZE(hooks)];
	struct kprobe *found[ARRAY_SIZE(hooks)];
	int err = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		probes[i] = (struct kprobe){ .symbol_name = hooks[i].function, .flags = KPROBE_FLAG_DISABLED };
		err = register_kprobe(&probes[i]);
		if (err) {
			pr_err("this kernel's kvm has no %s to probe (%d)\n", hooks[i].function, err);
			break;
		}
		found[i] = &probes[i];
		hooks[i].address = addresses[i] = (unsigned long)probes[i].addr;
	}
	unregister_kprobes(found, i);
	return err;
}

static int add_hooks(void)
{
	unsigned long addresses[ARRAY_SIZE(hooks)];
	int err = find_functions(addresses);

	if (err)
		return err;
	err = ftrace_set_filter_ips(&hooking, addresses, ARRAY_SIZE(addresses), 0, 1) ?:
	      register_ftrace_function(&hooking);
	if (!err)
		return 0;
	free_hooking();
	if (err == -EBUSY)
		pr_err("ftrace is switched off: sysctl kernel.ftrace_enabled=1\n");
	else
		pr_err("this kernel's kvm cannot be probed (%d)\n", err);
	return err;
}

/* If ftrace does not let go (it has failed, and says so), our code may be called at any time: then it must stay. */
static void remove_hooks(void)
{
	int err = unregister_ftrace_function(&hooking);

	if (err) {
		pr_emerg("ftrace keeps its hooks on kvm (%d): this task stays, so that the module does\n", err);
		for (;;)
			schedule_timeout_uninterruptible(MAX_SCHEDULE_TIMEOUT);
	}
	free_hooking();
}

#else

static void remove_hooks(void)
{
}

static int add_hooks(void)
{
	pr_err("a kernel without DYNAMIC_FTRACE_WITH_ARGS is not supported\n");
	return -EOPNOTSUPP;
}

#endif

static bool is_svm;
static DEFINE_MUTEX(attaching);
static bool attached;

static void *on_exit(void)
{
	return is_svm ? (void *)exitscope_on_svm_exit : (void *)exitscope_on_vmx_exit;
}

static int attach(void)
{
	int err = add_hooks();

	if (err)
		return err;
	err = tracepoint_probe_register(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	if (err)
		goto hooks;
	err = tracepoint_probe_register(&__tracepoint_kvm_exit, on_exit(), NULL);
	if (err)
		goto entry;
	attached = true;
	return 0;
entry:
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	tracepoint_synchronize_unregister();
hooks:
	remove_hooks();
	return err;
}

static void detach(void)
{
	if (!attached)
		return;
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit(), NULL);
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, exitscope_on_entry, NULL);
	tracepoint_synchronize_unregister();
	remove_hooks();
	attached = false;
}

static const char *vendor(void)
{
	return is_svm ? "kvm_amd" : "kvm_intel";
}

/* Attaches if the vendor's part of KVM is there and proven; waits for it if it is not there. */
static int attach_vendor(bool is_there)
{
	int err = exitscope_prove(is_svm);

	if (!err)
		return attach();
	if (err != -ENOENT)
		return err;
	if (!is_there)
		return 0;
	pr_err("there is no /sys/kernel/btf/%s, which tells what its vCPUs are like: this kernel is not supported\n", vendor());
	return -EOPNOTSUPP;
}

/* The vendor's part comes and goes beneath us. It has no guests before it has come, and none when it goes. */
static int vendor_event(struct notifier_block *self, unsigned long event, void *data)
{
	struct module *module = data;

	if (strcmp(module->name, vendor()))
		return NOTIFY_DONE;
	mutex_lock(&attaching);
	if (event == MODULE_STATE_COMING && !attached && attach_vendor(true))
		pr_err("exits of its guests are not counted\n");
	if (event == MODULE_STATE_GOING)
		detach();
	mutex_unlock(&attaching);
	return NOTIFY_OK;
}

static struct notifier_block vendor_notifier = { .notifier_call = vendor_event };

static bool vendor_is_there(void)
{
	struct file *file;
	char path[64];

	snprintf(path, sizeof(path), "/sys/module/%s/initstate", vendor());
	file = exitscope_open(path);
	if (IS_ERR(file))
		return false;
	filp_close(file, NULL);
	return true;
}

void exitscope_stop_watching(void)
{
	unregister_module_notifier(&vendor_notifier);
	detach();
}

int exitscope_start_watching(void)
{
	int err = register_module_notifier(&vendor_notifier);

	if (err)
		return err;
	mutex_lock(&attaching);
	if (!attached)
		err = attach_vendor(vendor_is_there());
	mutex_unlock(&attaching);
	/* It may have come in the meantime. */
	if (err)
		exitscope_stop_watching();
	return err;
}

int exitscope_choose_vendor(void)
{
	/* Refused here and not by the build, which would fail the installation of such a kernel beside ours (DKMS). */
	if (IS_ENABLED(CONFIG_CFI_CLANG) || IS_ENABLED(CONFIG_CFI)) {
		pr_err("a kernel with CFI is not supported: our probes carry no type hashes\n");
		return -EOPNOTSUPP;
	}
	if (!IS_ENABLED(CONFIG_SMP)) {
		pr_err("a kernel without SMP is not supported: our probes find their CPU's variables by the GS base\n");
		return -EOPNOTSUPP;
	}
	is_svm = boot_cpu_has(X86_FEATURE_SVM);
	if (!is_svm && !boot_cpu_has(X86_FEATURE_VMX)) {
		pr_err("this CPU has neither SVM nor VMX\n");
		return -ENODEV;
	}
	return 0;
}

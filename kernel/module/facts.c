// SPDX-License-Identifier: GPL-2.0-only
/* What the module takes for granted of KVM's structures, proven against the BTF of the kernel that runs. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kvm_host.h>
#include <linux/path.h>
#include <linux/printk.h>
#include <linux/sched/task.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include <asm/svm.h>

#include "shim.h"

#define PLACE(type, member) offsetof(struct type, member), sizeof_field(struct type, member)
#define FACT(type, member) { #type "." #member, PLACE(type, member) }
/* A parameter is a vCPU: what it points to has a vCPU's number where a vCPU has it. */
#define TAKES_VCPU(parameter) { parameter "->vcpu_id", PLACE(kvm_vcpu, vcpu_id) }

/* Headers say these, but for the kernel that they belong to: nothing else makes sure that it is this one. */
static const struct exitscope_fact kvm_facts[] = {
	{ "kvm_vcpu", 0, sizeof(struct kvm_vcpu) },
	FACT(kvm_vcpu, kvm),
	FACT(kvm_vcpu, vcpu_id),
	FACT(kvm_vcpu, arch.regs),
	FACT(kvm_vcpu, arch.regs_avail),
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 2, 0)
	FACT(kvm_vcpu, arch.rip),
#endif
	FACT(kvm_vcpu, arch.guest_state_protected),
	FACT(kvm_vcpu, arch.hflags),
	FACT(kvm, userspace_pid),
	TAKES_VCPU("btf_trace_kvm_exit(1)"),
	TAKES_VCPU("btf_trace_kvm_entry(1)"),
	FACT(kvm_vcpu, stat.generic.halt_poll_success_ns),
	FACT(kvm_vcpu, stat.generic.halt_poll_fail_ns),
	FACT(kvm_vcpu, stat.generic.halt_wait_ns),
	TAKES_VCPU("kvm_arch_vcpu_ioctl_run(0)"),
	TAKES_VCPU("kvm_sigset_deactivate(0)"),
	TAKES_VCPU("kvm_vcpu_halt(0)"),
	TAKES_VCPU("kvm_vcpu_block(0)"),
	TAKES_VCPU("kvm_arch_vcpu_destroy(0)"),
};

/* No header says these. */
static const struct exitscope_fact svm_facts[] = {
	{ "vcpu_svm.vcpu", 0, sizeof(struct kvm_vcpu) },
	{ "vcpu_svm.vmcb", VMCB_POINTER, sizeof(void *) },
	{ "vcpu_svm.vmcb->control.exit_code", PLACE(vmcb, control.exit_code) },
};

struct file *exitscope_open(const char *path)
{
	struct file *file;
	struct path root;

	task_lock(&init_task);
	get_fs_root(init_task.fs, &root);
	task_unlock(&init_task);
	file = file_open_root(&root, path, O_RDONLY, 0);
	path_put(&root);
	return file;
}

/* A file of sysfs as a whole; its inode has its size. */
static void *read_whole(const char *path, size_t *size)
{
	struct file *file = exitscope_open(path);
	char *bytes = NULL;
	loff_t at = 0;
	ssize_t got;

	if (IS_ERR(file))
		return ERR_CAST(file);
	*size = i_size_read(file_inode(file));
	bytes = vmalloc(*size ?: 1);
	if (!bytes)
		bytes = ERR_PTR(-ENOMEM);
	while (!IS_ERR(bytes) && at < *size) {
		got = kernel_read(file, bytes + at, *size - at, &at);
		if (got <= 0) {
			vfree(bytes);
			bytes = ERR_PTR(got ?: -EIO);
		}
	}
	filp_close(file, NULL);
	return bytes;
}

#define BTF "/sys/kernel/btf/"

/* Whether a module of KVM's is as the facts say. -ENOENT without a word: it is not there, or has no BTF. */
static int prove_with(const void *kernel, size_t kernel_size, const char *name, const struct exitscope_fact *facts,
		      size_t count)
{
	struct exitscope_fact found;
	const void *module;
	size_t size, proven;
	char path[64];

	snprintf(path, sizeof(path), BTF "%s", name);
	module = read_whole(path, &size);
	if (IS_ERR(module)) {
		if (PTR_ERR(module) != -ENOENT)
			pr_err("cannot read %s (%ld)\n", path, PTR_ERR(module));
		return PTR_ERR(module);
	}
	proven = exitscope_proven(kernel, kernel_size, module, size, facts, count, &found);
	vfree(module);
	if (proven == count)
		return 0;
	if (found.size)
		pr_err("%s has %s at byte %u (of %u bytes), this module was built for byte %u (of %u): build it for this kernel\n",
		       path, facts[proven].what, found.offset, found.size, facts[proven].offset, facts[proven].size);
	else
		pr_err("%s does not say where %s is: this kernel is not supported\n", path, facts[proven].what);
	return -EOPNOTSUPP;
}

int exitscope_prove(bool svm)
{
	size_t size;
	void *kernel = read_whole(BTF "vmlinux", &size);
	int err;

	if (IS_ERR(kernel)) {
		pr_err("cannot read " BTF "vmlinux (%ld), which tells what KVM's structures are like: this kernel is not supported\n",
		       PTR_ERR(kernel));
		return -EOPNOTSUPP;
	}
	err = prove_with(kernel, size, "kvm", kvm_facts, ARRAY_SIZE(kvm_facts));
	if (err == -ENOENT) {
		pr_err("there is no " BTF "kvm, which tells what struct kvm_vcpu is like: this kernel is not supported\n");
		err = -EOPNOTSUPP;
	}
	if (!err && svm)
		err = prove_with(kernel, size, "kvm_amd", svm_facts, ARRAY_SIZE(svm_facts));
	vfree(kernel);
	return err;
}

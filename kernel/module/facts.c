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
#include <linux/string.h>
#include <linux/vmalloc.h>

#include <asm/svm.h>

#include "shim.h"

u32 exitscope_vmx_exit_reason, exitscope_rip_bit;

#define PLACE(type, member) offsetof(struct type, member), sizeof_field(struct type, member)
#define FACT(type, member) { #type "." #member, PLACE(type, member) }
/* A parameter is a vCPU: what it points to has a vCPU's number where a vCPU has it. */
#define TAKES_VCPU(parameter) { parameter "->vcpu_id", PLACE(kvm_vcpu, vcpu_id) }
#define CONSTANT(name) { "enum " #name, name, 0 }

/* Headers say these, but for the kernel that they belong to: nothing else makes sure that it is this one. */
static const struct exitscope_fact kvm_facts[] = {
	{ "kvm_vcpu", 0, sizeof(struct kvm_vcpu) },
	FACT(kvm_vcpu, kvm),
	FACT(kvm_vcpu, vcpu_id),
	FACT(kvm_vcpu, run),
	FACT(kvm_vcpu, arch.regs),
	FACT(kvm_vcpu, arch.regs_dirty),
	CONSTANT(VCPU_REGS_RAX),
	CONSTANT(VCPU_REGS_RCX),
	CONSTANT(VCPU_REGS_RDX),
	CONSTANT(VCPU_REGS_RBX),
	CONSTANT(VCPU_REGS_RSP),
	{ "enum VCPU_REGS_RIP|enum VCPU_REG_RIP", .found = &exitscope_rip_bit },
	FACT(kvm_vcpu, arch.guest_state_protected),
	FACT(kvm_vcpu, arch.hflags),
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

static const struct exitscope_fact vmx_facts[] = {
	{ "vcpu_vmx.vcpu", 0, sizeof(struct kvm_vcpu) },
	/* Since 6.16 in a part that the vCPUs of TDX guests have at the same place. */
	{ "vcpu_vmx.vt.exit_reason|vcpu_vmx.exit_reason", .size = sizeof(u32), .found = &exitscope_vmx_exit_reason },
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

/*
 * Whether a part of KVM is as the facts say, whether it is a module or built into the kernel. -ENOENT without a word: no
 * BTF speaks of it.
 */
static int prove_with(const void *kernel, size_t kernel_size, const char *name, const struct exitscope_fact *facts,
		      size_t count)
{
	struct exitscope_fact found;
	void *module;
	size_t size = 0, proven;
	char path[64];

	snprintf(path, sizeof(path), BTF "%s", name);
	module = read_whole(path, &size);
	if (PTR_ERR_OR_ZERO(module) == -ENOENT) {
		module = NULL;
		size = 0;
		strscpy(path, BTF "vmlinux", sizeof(path));
	}
	if (IS_ERR(module)) {
		pr_err("cannot read %s (%ld)\n", path, PTR_ERR(module));
		return PTR_ERR(module);
	}
	proven = exitscope_proven(kernel, kernel_size, module, size, facts, count, &found);
	vfree(module);
	if (proven == count)
		return 0;
	/* The kernel's own types may have some of a module's. */
	if (!module && !found.size)
		return -ENOENT;
	if (found.size && !facts[proven].found)
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
	else if (!err)
		err = prove_with(kernel, size, "kvm_intel", vmx_facts, ARRAY_SIZE(vmx_facts));
	vfree(kernel);
	return err;
}

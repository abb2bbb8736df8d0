// SPDX-License-Identifier: GPL-2.0-only
/* Does at its load, or leaves at its unload, a fault that a checker of the debug kernel must find. */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

static char *kind;
module_param(kind, charp, 0);

static DEFINE_RAW_SPINLOCK(raw);
static DEFINE_SPINLOCK(first);
static DEFINE_SPINLOCK(second);

/* KASAN. */
static void use_after_free(void)
{
	int *memory = kmalloc(64, GFP_KERNEL);

	kfree(memory);
	pr_info("%d\n", READ_ONCE(*memory));
}

/* DEBUG_ATOMIC_SLEEP. */
static void sleep_in_atomic(void)
{
	spin_lock(&first);
	kfree(kmalloc(64, GFP_KERNEL));
	spin_unlock(&first);
}

/* DEBUG_PREEMPT. */
static void migratable(void)
{
	pr_info("CPU %d\n", smp_processor_id());
}

/* MEM_ALLOC_PROFILING: pages are not kmemleak's. */
static void leak_page(void)
{
	if (__get_free_page(GFP_KERNEL))
		pr_info("a page is lost\n");
}

/* kmemleak: allocated in the kernel's name, lost by us. */
static void leak_object(void)
{
	if (kasprintf(GFP_KERNEL, "%s is lost", kind))
		pr_info("an object is lost\n");
}

static void never(struct timer_list *timer)
{
}

/* DEBUG_OBJECTS. */
static void free_active_timer(void)
{
	struct timer_list *timer = kzalloc(sizeof(*timer), GFP_KERNEL);

	timer_setup(timer, never, 0);
	mod_timer(timer, jiffies + 3600 * HZ);
	kfree(timer);
}

/* UBSAN. */
static void shift_too_far(void)
{
	int bits = strlen(kind) + 32;

	pr_info("%d\n", 1 << bits);
}

/* DEBUG_LIST. */
static void unlink_twice(void)
{
	LIST_HEAD(head);
	struct list_head member;

	list_add(&member, &head);
	list_del(&member);
	list_del(&member);
}

/* PROVE_RCU. */
static void read_unprotected(void)
{
	static int __rcu *pointer;

	pr_info("%p\n", rcu_dereference(pointer));
}

/* PROVE_LOCKING, which gives up after its first finding. */
static void lock_out_of_order(void)
{
	spin_lock(&first);
	spin_lock(&second);
	spin_unlock(&second);
	spin_unlock(&first);
	spin_lock(&second);
	spin_lock(&first);
	spin_unlock(&first);
	spin_unlock(&second);
}

/* PROVE_RAW_LOCK_NESTING. */
static void lock_under_raw(void)
{
	raw_spin_lock(&raw);
	spin_lock(&first);
	spin_unlock(&first);
	raw_spin_unlock(&raw);
}

static const struct {
	const char *kind;
	void (*commit)(void);
} faults[] = {
	{ "use_after_free", use_after_free },
	{ "sleep_in_atomic", sleep_in_atomic },
	{ "migratable", migratable },
	{ "leak_page", leak_page },
	{ "leak_object", leak_object },
	{ "free_active_timer", free_active_timer },
	{ "shift_too_far", shift_too_far },
	{ "unlink_twice", unlink_twice },
	{ "read_unprotected", read_unprotected },
	{ "lock_out_of_order", lock_out_of_order },
	{ "lock_under_raw", lock_under_raw },
};

static int __init fault_init(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
		if (kind && !strcmp(kind, faults[i].kind)) {
			faults[i].commit();
			return 0;
		}
	}
	return -EINVAL;
}

static void __exit fault_exit(void)
{
}

module_init(fault_init);
module_exit(fault_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Does what a checker of the kernel must find");

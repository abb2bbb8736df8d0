# Makes the ext4 image $1 of Debian from the packages in $2, in the directory $3, under fakeroot.
# No script of a package runs, so no chroot is needed; what those of the packages here would do is done below.
set -eu
PATH=$PATH:/usr/sbin:/sbin
image=$1 packages=$2 root=$3

# Debian's file system is merged: these are links before any package is unpacked.
mkdir -p "$root/usr"
for name in bin sbin lib lib64; do
	mkdir "$root/usr/$name"
	ln -s "usr/$name" "$root/$name"
done
for package in "$packages"/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x -p -C "$root" --keep-directory-symlink \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
		--exclude='./usr/share/locale/*' --exclude='./usr/share/lintian/*'
done

# base-passwd, and the accounts that other packages make.
for file in passwd group; do
	cp "$root/usr/share/base-passwd/$file.master" "$root/etc/$file"
done
id=100
for user in systemd-network systemd-resolve systemd-timesync messagebus; do
	echo "$user:x:$id:$id::/nonexistent:/usr/sbin/nologin" >>"$root/etc/passwd"
	echo "$user:x:$id:" >>"$root/etc/group"
	id=$((id + 1))
done
for group in systemd-journal input sgx kvm render; do
	echo "$group:x:$id:" >>"$root/etc/group"
	id=$((id + 1))
done
sed 's/:.*/:*:20000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
chmod 640 "$root/etc/shadow"

# What an installation leaves: a name, an identity and time stamps, without which systemd sees a first boot.
echo exitscope >"$root/etc/hostname"
echo '127.0.0.1 localhost exitscope' >"$root/etc/hosts"
echo 65786974736265636f70652d64656269 >"$root/etc/machine-id"
: >"$root/etc/fstab"
ln -sfn /run "$root/var/run"
ln -sfn /run/lock "$root/var/lock"
touch "$root/etc/.updated" "$root/var/.updated"

mke2fs -q -F -t ext4 -b 4096 -N 16384 -L debian -d "$root" -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 \
	-J size=4 "$image" 384M

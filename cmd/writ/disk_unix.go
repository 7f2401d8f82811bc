//go:build unix

package main

import "golang.org/x/sys/unix"

// diskFree is how many bytes the user can still write to a folder's disk.
func diskFree(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

//go:build unix

package plane

import (
	"os"

	"golang.org/x/sys/unix"
)

// giveTo gives a file that root made in a data folder to the folder's owner.
// Nobody else can give files away, or has to.
func giveTo(data, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var of unix.Stat_t
	if err := unix.Stat(data, &of); err != nil {
		return &os.PathError{Op: "stat", Path: data, Err: err}
	}
	return os.Lchown(path, int(of.Uid), int(of.Gid))
}

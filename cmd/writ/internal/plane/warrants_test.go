//go:build unix

package plane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Root serves a warrant on the issuer's machine, and the issuer runs as another
// user, who owns the data folder: it must be able to read what was kept.
func TestAServedWarrantIsTheDataFoldersOwners(t *testing.T) {
	data := t.TempDir()
	if os.Geteuid() == 0 {
		if err := os.Chown(data, 4711, 4712); err != nil {
			t.Fatal(err)
		}
	}
	if err := KeepWarrant(data, "ACCOUNT", "token"); err != nil {
		t.Fatal(err)
	}
	var of unix.Stat_t
	if err := unix.Stat(data, &of); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(data, WarrantsDir)
	for _, path := range []string{dir, filepath.Join(dir, "ACCOUNT.jwt")} {
		var is unix.Stat_t
		if err := unix.Stat(path, &is); err != nil {
			t.Fatal(err)
		}
		if is.Uid != of.Uid || is.Gid != of.Gid {
			t.Errorf("%s is of %d:%d, and the folder of %d:%d", path, is.Uid, is.Gid, of.Uid, of.Gid)
		}
	}
	if got, err := servedWarrants(data); err != nil || !slices.Equal(got, []string{"token"}) {
		t.Errorf("%v, %v", got, err)
	}
}

// Warrants that can't be read are no warrants that were never served: the issuer
// would let in again who was killed by one.
func TestNoIssuerStartsWhereServedWarrantsCantBeRead(t *testing.T) {
	data := t.TempDir()
	if got, err := servedWarrants(data); err != nil || len(got) != 0 {
		t.Fatalf("where none was served: %v, %v", got, err)
	}
	dir := filepath.Join(data, WarrantsDir)
	if err := os.Symlink(dir, dir); err != nil { // root can read whatever there is
		t.Fatal(err)
	}
	if _, err := servedWarrants(data); err == nil || !strings.Contains(err.Error(), "chown -R") {
		t.Errorf("the folder: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "ACCOUNT.jwt"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := servedWarrants(data); err == nil || !strings.Contains(err.Error(), "chown -R") {
		t.Errorf("a warrant: %v", err)
	}
}

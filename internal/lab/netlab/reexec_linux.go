package netlab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

const usernsVerb = "spillway-netlab-userns"

// Reexec must be the first thing in main or TestMain of a program that uses
// ClaimProgram or UserNamespaceCommand. In a process started by one of them it
// does that process's part: a claim ends the process; inside a user namespace
// it prepares the mounts, puts os.Args back to what the command was given, and
// returns.
func Reexec() {
	if len(os.Args) < 2 {
		return
	}
	var err error
	switch os.Args[1] {
	case claimVerb:
		if err = claimMain(os.Args[2:]); err == nil {
			os.Exit(0)
		}
	case usernsVerb:
		if len(os.Args) < 3 {
			err = fmt.Errorf("directory is missing")
			break
		}
		if err = enterUserNamespace(os.Args[2]); err == nil {
			os.Args = append(os.Args[:1:1], os.Args[3:]...)
			return
		}
	default:
		return
	}
	fmt.Fprintln(os.Stderr, "netlab:", err)
	os.Exit(1)
}

// UserNamespaceCommand returns a command that runs this process's own
// executable with args in new user, network and mount namespaces, where it is
// root and can build labs without being root outside. runDir (an existing
// directory) gets a private tmpfs there. The caller sets Stdout and the like
// and runs it.
func UserNamespaceCommand(ctx context.Context, runDir string, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, self, append([]string{usernsVerb, runDir}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		GidMappingsEnableSetgroups: false,
		Pdeathsig:                  syscall.SIGKILL,
	}
	return c, nil
}

func enterUserNamespace(runDir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", runDir, err)
	}
	return nil
}

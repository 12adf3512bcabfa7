package machine

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/flowtable"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	Fine    Level = "ok"
	Advice  Level = "advice"  // works, could be better
	Missing Level = "missing" // a role cannot work without it
)

// Finding is one thing that the doctor looked at.
type Finding struct {
	What   string `json:"what"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
}

// Examine looks at the machine and changes nothing.
func Examine() []Finding {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail with a valid pointer
	out := []Finding{{"kernel", Fine, unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])}}
	out = append(out, examineTUN(), examineCaps(), examineUserNS(), examineTables())
	out = append(out, examineSysctls()...)
	return out
}

func examineTUN() Finding {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return Finding{"/dev/net/tun", Missing,
			fmt.Sprintf("%v: load the tun module (modprobe tun), or give the container the device; without it tasks can use a stock WireGuard client elsewhere", err)}
	}
	f.Close()
	return Finding{"/dev/net/tun", Fine, "can be opened"}
}

func examineCaps() Finding {
	if err := privileged(); err != nil {
		return Finding{"CAP_NET_ADMIN, CAP_SYS_ADMIN", Missing, err.Error()}
	}
	return Finding{"CAP_NET_ADMIN, CAP_SYS_ADMIN", Fine, "held"}
}

func examineUserNS() Finding {
	cmd := exec.Command("/proc/self/exe", "--version")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}}
	err := cmd.Start()
	if err == nil {
		_ = cmd.Wait() // that it could start is the answer
	}
	if err != nil {
		return Finding{"user namespaces", Advice,
			fmt.Sprintf("%v: unprivileged use is not possible here (see kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)", err)}
	}
	return Finding{"user namespaces", Fine, "can be made"}
}

func examineTables() Finding {
	for _, dir := range []string{"/run/spillway", "/run", "/dev/shm"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := flowtable.CheckDir(dir); err == nil {
			return Finding{"memory for flow tables", Fine, dir + " is a tmpfs"}
		}
	}
	return Finding{"memory for flow tables", Missing, "neither /run/spillway nor /dev/shm is on a tmpfs: mount one, and set run_dir to it"}
}

// examineSysctls looks at kernel settings that matter on an egress.
func examineSysctls() []Finding {
	read := func(key string) string {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	var out []Finding
	for _, key := range []string{"net.core.rmem_max", "net.core.wmem_max"} {
		f := Finding{key, Fine, read(key)}
		if n, err := strconv.Atoi(f.Detail); err != nil || n < 4<<20 {
			f.Level = Advice
			f.Detail += fmt.Sprintf(": bursts are lost without privileges to exceed it; sysctl -w %s=7340032", key)
		}
		out = append(out, f)
	}
	if read("net.ipv4.ip_forward") == "1" {
		out = append(out, Finding{"net.ipv4.ip_forward", Advice,
			"1: this machine is a router; spillway's guard holds for its own devices only, so prefer isolate: netns on an egress"})
	} else {
		out = append(out, Finding{"net.ipv4.ip_forward", Fine, "0 (spillway forwards in its own namespace, or on its own devices)"})
	}
	if n := read("net.netfilter.nf_conntrack_max"); n != "" {
		out = append(out, Finding{"net.netfilter.nf_conntrack_max", Fine, n + " (endpoint addresses are exempt: notrack)"})
	}
	return out
}

package machinetest_test

import (
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a guest's root holds goes through a branch, and each side writes its own from then on.
func TestFilesFollowBranches(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	vm := r.Run(t)
	r.Exec(t, r.Acme, vm.ID, "echo before > note; mkdir -p a/b; echo deep > a/b/c")
	children, _, _, err := r.Manager.Branch(t.Context(), r.Acme, vm.ID, machine.BranchRequest{Count: 2})
	must(t, err)
	r.Exec(t, r.Acme, vm.ID, "echo parent > note")
	r.Exec(t, r.Acme, children[0].ID, "echo child > note")
	for id, want := range map[string]string{vm.ID: "parent\ndeep\n", children[0].ID: "child\ndeep\n", children[1].ID: "before\ndeep\n"} {
		if got := r.Exec(t, r.Acme, id, "cat note a/b/c"); got != want {
			t.Errorf("VM %s holds %q, want %q", id, got, want)
		}
	}
	client, err := r.Manager.Guest(t.Context(), r.Acme, children[0].ID)
	must(t, err)
	info, err := client.Hello(t.Context())
	must(t, err)
	if info.VMID != children[0].ID || info.Generation != 2 {
		t.Errorf("the child's agent says %+v, want its own id and generation 2", info)
	}
	r.Empty(t)
}

// A command is a process of the host, and must not outlive its VM.
func TestCommandsEndWithTheirMachine(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	vm := r.Run(t)
	client, err := r.Manager.Guest(t.Context(), r.Acme, vm.ID)
	must(t, err)
	stream, err := client.Exec(t.Context(), guest.ExecRequest{Command: []string{"sh", "-c", "echo $$; sleep 1000"}})
	must(t, err)
	defer stream.Close()
	event, err := stream.Recv()
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(event.Data)))
	must(t, err)

	r.Restart(t) // does not end it
	must(t, syscall.Kill(pid, 0))
	must(t, r.Manager.Delete(t.Context(), r.Acme, vm.ID, false))
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the command's process after its VM's end: %v", err)
	}
	if _, err := os.Stat(r.Dir + "/vms/" + vm.ID); !os.IsNotExist(err) {
		t.Errorf("the VM's directory after its end: %v", err)
	}
	r.Empty(t)
}

func TestPorts(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	vm := r.Run(t)
	if _, err := r.Manager.DialGuest(t.Context(), r.Acme, vm.ID, 80); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial a port on which nothing listens: %v", err)
	}
	r.Driver.Serve(80, func(vmID string, conn net.Conn) {
		io.WriteString(conn, vmID+"\n")
		io.Copy(conn, conn)
	})
	conn, err := r.Manager.DialGuest(t.Context(), r.Acme, vm.ID, 80)
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "hello")
	must(t, err)
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(conn)
	must(t, err)
	if want := vm.ID + "\nhello"; string(got) != want {
		t.Errorf("read %q, want %q", got, want)
	}
	open, err := r.Manager.DialGuest(t.Context(), r.Acme, vm.ID, 80)
	must(t, err)
	must(t, r.Manager.Delete(t.Context(), r.Acme, vm.ID, false))
	if _, err := io.Copy(io.Discard, open); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Errorf("a connection of a VM that is gone: %v", err)
	}
}

// A paused guest does not answer, and does once it runs again.
func TestPausedGuestIsSilent(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	vm := r.Run(t)
	client, err := r.Manager.Guest(t.Context(), r.Acme, vm.ID)
	must(t, err)
	must(t, r.Manager.Pause(t.Context(), r.Acme, vm.ID, false))
	answer := make(chan error, 1)
	go func() {
		_, err := client.Hello(t.Context())
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("a paused guest answered: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	must(t, r.Manager.Resume(t.Context(), r.Acme, vm.ID, false))
	must(t, <-answer)
}

// What the rig is for: the operations, without QEMU. go test -bench . says how long they take.
func BenchmarkOperations(b *testing.B) {
	r := machinetest.New(b, machinetest.Options{})
	vm := r.Run(b)
	r.AwaitTemplate(b)
	for name, do := range map[string]func() error{
		"run": func() error {
			_, err := r.Manager.Run(b.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
			return err
		},
		"branch": func() error {
			_, _, _, err := r.Manager.Branch(b.Context(), r.Acme, vm.ID, machine.BranchRequest{Count: 1})
			return err
		},
		"commit": func() error {
			_, _, err := r.Manager.Commit(b.Context(), r.Acme, vm.ID, machine.CommitRequest{})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

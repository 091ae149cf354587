package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vers/internal/daemon"
	"vers/internal/image"
)

func kernelCommand(o *options) *cobra.Command {
	return group("kernel", "Kernels that VMs boot by name", kernelAddCommand(o), kernelListCommand(o), kernelRemoveCommand(o))
}

// withKernels runs do on the kernels of the configured data directory.
func (o *options) withKernels(cmd *cobra.Command, do func(k *daemon.Kernels) error) (err error) {
	c, err := o.load(cmd)
	if err != nil {
		return err
	}
	k, err := daemon.OpenKernels(cmd.Context(), c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	return do(k)
}

// kernelJSON is a kernel in JSON output.
type kernelJSON struct {
	Name    string `json:"name"`
	Release string `json:"release"`
	Digest  string `json:"digest"`
	VMs     int    `json:"vms"`
	Commits int    `json:"commits"`
}

func kernelAddCommand(o *options) *cobra.Command {
	var source image.KernelSource
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME --from FILE|PACKAGE",
		Short: "Add a kernel from a Debian package or a kernel image",
		Long: `The kernel is unpacked, not installed, and VMs can ask for it at once, whether versd runs or not: with --kernel NAME,
name = "NAME" below [kernel] in vers.toml, or kernel_name in the API.

--from takes a .deb file, the name of a package in this host's package sources (of a meta package, the kernel it stands
for), or a kernel image for x86-64 such as /boot/vmlinuz-…, whose modules are looked for in /lib/modules. The kernel must
have virtio (PCI, block, network, random numbers, console) and ext4, as modules or built in.`,
		Example: "  versd kernel add full --from linux-image-amd64\n" +
			"  versd kernel add old --from ./linux-image-6.1.0-50-cloud-amd64_6.1.176-1_amd64.deb\n" +
			"  versd kernel add mine --from ./bzImage --modules ./lib/modules/6.12.0-mine",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withKernels(cmd, func(k *daemon.Kernels) error {
				made, err := k.Add(cmd.Context(), args[0], source, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), kernelJSON{Name: made.Name, Release: made.Release, Digest: made.Digest})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Kernel '%s' added: %s. Use it: vers run --kernel %s\n", made.Name, made.Release, made.Name)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&source.From, "from", "", "kernel image, .deb file, or name of a Debian package")
	cmd.Flags().StringVar(&source.Modules, "modules", "", "of a kernel image: folder with its modules and modules.builtin (default: /lib/modules/RELEASE)")
	cmd.Flags().BoolVar(&source.BuiltIn, "built-in", false, "of a kernel image: it has virtio and ext4 built in and needs no modules")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(cmd.MarkFlagRequired("from"))
	return cmd
}

func kernelListCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Kernels, with who needs them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.withKernels(cmd, func(k *daemon.Kernels) error {
				kernels, err := k.List(cmd.Context())
				if err != nil {
					return err
				}
				shown := []kernelJSON{}
				rows := [][]string{{"NAME", "RELEASE", "VMS", "COMMITS"}}
				for _, k := range kernels {
					shown = append(shown, kernelJSON{k.Name, k.Release, k.Digest, k.VMs, k.Commits})
					rows = append(rows, []string{k.Name, k.Release, strconv.Itoa(k.VMs), strconv.Itoa(k.Commits)})
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), shown)
				}
				return writeTable(cmd.OutOrStdout(), rows)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func kernelRemoveCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a kernel that no VM and no commit needs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withKernels(cmd, func(k *daemon.Kernels) error {
				if err := k.Remove(cmd.Context(), args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Kernel '%s' removed\n", args[0])
				return err
			})
		},
	}
}

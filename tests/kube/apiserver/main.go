// The API server and the controllers of Kubernetes in one program: `kube-cluster apiserver …`, `kube-cluster controllers …`.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	made := map[string]func() *cobra.Command{
		"apiserver":   apiserver.NewAPIServerCommand,
		"controllers": controllers.NewControllerManagerCommand,
	}
	if len(os.Args) < 2 || made[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "kube-cluster apiserver|controllers [flags]")
		os.Exit(2)
	}
	command := made[os.Args[1]]()
	command.SetArgs(os.Args[2:])
	os.Exit(cli.Run(command))
}

package chaos

import "net"

// freePort finds a loopback address that is free now: the control plane keeps
// it over its restarts, as clients expect.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

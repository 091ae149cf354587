// Package egress is what a guest may reach, as a value: rules, policies, and the levels that hold for one VM. It opens no
// connection and knows no VM; internal/netstack asks it about every flow and every name.
//
// A VM stands under up to three policies: the server's, its organisation's and its own. A flow is permitted if each of
// them permits it, so a lower level only narrows: what is private, the host's own or a metadata service stays closed
// unless the server's operator opens it.
package egress

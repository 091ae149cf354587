// Package api holds the wire types of the vers HTTP API (spec/api.md) and its Go client. The types carry huma's
// struct tags, from which the server generates api/openapi.yaml.
//
// Fields that the field's published contract does not know are marked [ours]; clients in the field ignore them.
package api

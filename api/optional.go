package api

import (
	"encoding/json"
)

// OptionalString is a field of a PATCH body with three states: absent (keep what is there), null (clear it) and text
// (set it). Use it with the JSON option omitzero.
type OptionalString struct {
	Set   bool    // the field is present
	Value *string // nil: null
}

// Text makes an OptionalString that sets s.
func Text(s string) OptionalString { return OptionalString{Set: true, Value: &s} }

// Null makes an OptionalString that clears.
func Null() OptionalString { return OptionalString{Set: true} }

// IsZero reports that the field is absent.
func (o OptionalString) IsZero() bool { return !o.Set }

// MarshalJSON implements json.Marshaler.
func (o OptionalString) MarshalJSON() ([]byte, error) { return json.Marshal(o.Value) }

// UnmarshalJSON implements json.Unmarshaler. It is called for null too, not for an absent field.
func (o *OptionalString) UnmarshalJSON(data []byte) error {
	o.Set, o.Value = true, nil
	return json.Unmarshal(data, &o.Value)
}

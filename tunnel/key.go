package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
)

// KeySize is the length of every WireGuard key, in bytes.
const KeySize = 32

// errKeyText is deliberately silent about the text: it may be a private key.
var errKeyText = errors.New("not a WireGuard key: want 44 characters of base64 that hold 32 bytes")

// Key is a WireGuard public key, a point of Curve25519 (RFC 7748). It is
// comparable; the zero Key is no key.
type Key [KeySize]byte

// ParseKey reads a public key in the base64 form that wg(8) prints.
func ParseKey(text string) (Key, error) {
	b, err := parseKeyText(text)
	return Key(b), err
}

// String returns the base64 form of k.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is the zero Key.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText implements encoding.TextMarshaler with the base64 form.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) error {
	b, err := parseKeyText(string(text))
	if err == nil {
		*k = Key(b)
	}
	return err
}

func (k Key) hex() string { return hex.EncodeToString(k[:]) }

// PrivateKey is a machine's secret. Printing, logging or marshalling it gives
// "(private key)"; only Reveal gives its text.
type PrivateKey [KeySize]byte

// GeneratePrivateKey returns a new random key, clamped as RFC 7748 section 5
// wants it.
func GeneratePrivateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("random bytes for a private key: %w", err)
	}
	k.clamp()
	return k, nil
}

// ParsePrivateKey reads a private key in the base64 form that wg(8) prints and
// clamps it. An error never holds any part of text.
func ParsePrivateKey(text string) (PrivateKey, error) {
	b, err := parseKeyText(text)
	if err != nil {
		return PrivateKey{}, err
	}
	k := PrivateKey(b)
	if k.IsZero() {
		return PrivateKey{}, errors.New("private key is all zeros")
	}
	k.clamp()
	return k, nil
}

func (k *PrivateKey) clamp() {
	k[0] &= 248
	k[31] = k[31]&127 | 64
}

// IsZero reports whether k is the zero PrivateKey, which is no key.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// Public returns the public key that belongs to k, or the zero Key if k is
// zero.
func (k PrivateKey) Public() Key {
	if k.IsZero() {
		return Key{}
	}
	sk, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil { // only a wrong length does that
		return Key{}
	}
	return Key(sk.PublicKey().Bytes())
}

// Reveal returns the base64 form of the secret, for a key file or a
// configuration that a person asked for. Never log it.
func (k PrivateKey) Reveal() string { return base64.StdEncoding.EncodeToString(k[:]) }

const redactedPrivate = "(private key)"

// String implements fmt.Stringer and hides the secret.
func (k PrivateKey) String() string { return redactedPrivate }

// Format implements fmt.Formatter and hides the secret from every verb.
func (k PrivateKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedPrivate)) }

// LogValue implements slog.LogValuer and hides the secret.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(redactedPrivate) }

// MarshalText implements encoding.TextMarshaler and hides the secret.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(redactedPrivate), nil }

func (k PrivateKey) hex() string { return hex.EncodeToString(k[:]) }

// PresharedKey is the optional symmetric secret of two peers (the psk of
// Noise_IKpsk2). The zero PresharedKey means none. Like a PrivateKey it hides
// itself when printed.
type PresharedKey [KeySize]byte

// GeneratePresharedKey returns a new random key.
func GeneratePresharedKey() (PresharedKey, error) {
	var k PresharedKey
	if _, err := rand.Read(k[:]); err != nil {
		return PresharedKey{}, fmt.Errorf("random bytes for a pre-shared key: %w", err)
	}
	return k, nil
}

// ParsePresharedKey reads the base64 form that wg(8) prints. An error never
// holds any part of text.
func ParsePresharedKey(text string) (PresharedKey, error) {
	b, err := parseKeyText(text)
	return PresharedKey(b), err
}

// IsZero reports whether k is the zero PresharedKey: none.
func (k PresharedKey) IsZero() bool { return k == PresharedKey{} }

// Reveal returns the base64 form of the secret. Never log it.
func (k PresharedKey) Reveal() string { return base64.StdEncoding.EncodeToString(k[:]) }

const redactedPreshared = "(preshared key)"

// String implements fmt.Stringer and hides the secret.
func (k PresharedKey) String() string { return redactedPreshared }

// Format implements fmt.Formatter and hides the secret from every verb.
func (k PresharedKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedPreshared)) }

// LogValue implements slog.LogValuer and hides the secret.
func (k PresharedKey) LogValue() slog.Value { return slog.StringValue(redactedPreshared) }

// MarshalText implements encoding.TextMarshaler and hides the secret.
func (k PresharedKey) MarshalText() ([]byte, error) { return []byte(redactedPreshared), nil }

func (k PresharedKey) hex() string { return hex.EncodeToString(k[:]) }

func parseKeyText(text string) ([KeySize]byte, error) {
	// 32 bytes are 44 characters; Strict refuses a last character whose spare
	// bits are not zero, so that a key has one text only.
	var k [KeySize]byte
	if len(text) != 44 {
		return k, errKeyText
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != KeySize {
		return k, errKeyText
	}
	return [KeySize]byte(b), nil
}

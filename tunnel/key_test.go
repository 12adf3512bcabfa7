package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The key pair of RFC 7748 section 6.1 (Alice).
func TestPublicKeyOfRFC7748(t *testing.T) {
	k, err := ParsePrivateKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Public().String(); got != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("public key %s", got)
	}
}

func TestKeyText(t *testing.T) {
	k := testKey(t)
	pub, err := ParseKey(k.Public().String())
	if err != nil || pub != k.Public() {
		t.Fatal(pub, err)
	}
	back, err := ParsePrivateKey(k.Reveal())
	if err != nil || back != k {
		t.Fatal("private key does not survive its text", err)
	}
	for _, bad := range []string{"", "x", k.Reveal() + "\n", k.Reveal()[:43], strings.Repeat("A", 42) + "B=", strings.Repeat("!", 44)} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		} else if len(bad) > 20 && strings.Contains(err.Error(), bad[:20]) {
			t.Errorf("error %q shows the text", err)
		}
	}
	if _, err := ParsePrivateKey(strings.Repeat("A", 43) + "="); err == nil {
		t.Error("zero is taken for a private key")
	}
}

// Whatever is done to print a secret, it does not show.
func TestSecretsHide(t *testing.T) {
	k := testKey(t)
	psk, err := GeneratePresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	type box struct {
		K   PrivateKey
		PSK PresharedKey
	}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T %v"} {
		fmt.Fprintf(&out, verb+"\n", k)
		fmt.Fprintf(&out, verb+"\n", box{k, psk})
		fmt.Fprintf(&out, verb+"\n", &box{k, psk})
	}
	fmt.Fprintln(&out, k, psk)
	j, err := json.Marshal(box{k, psk})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "k", k, "psk", psk, "box", box{k, psk})
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "k", k, "psk", psk, "box", box{k, psk})
	for _, secret := range [][KeySize]byte{k, psk} {
		for _, form := range []string{
			PrivateKey(secret).Reveal(), fmt.Sprintf("%x", secret[:8]), fmt.Sprintf("%X", secret[:8]),
			strings.Trim(fmt.Sprint(secret[:8]), "[]"), strings.Trim(fmt.Sprintf("%#v", secret[:4]), "[]byte{}"),
		} {
			if strings.Contains(out.String(), form) {
				t.Errorf("a secret shows as %s in:\n%s", form, out.String())
			}
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if _, err := LoadKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	// Many start at once: all have the same key.
	keys := make([]PrivateKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = LoadOrCreateKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k.IsZero() {
			t.Fatal("two processes have different keys")
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if err := StoreKey(path, keys[0]); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("overwriting a key: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(link); err == nil {
		t.Error("a symbolic link is followed")
	}
	if err := StoreKey(link, keys[0]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("storing through a symbolic link: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	if _, err := LoadKey(dir); err == nil {
		t.Error("a directory is read as a key")
	}
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("secret-ish text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(bad); err == nil || strings.Contains(err.Error(), "secret-ish") {
		t.Errorf("a bad key file: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".key-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files stay: %v %v", left, err)
	}
}

/*
Copyright The clustermesh Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Why a peer is not connected: the reasons of the condition Connected.
const (
	ReasonConnected             = "Connected"
	ReasonConnecting            = "Connecting"
	ReasonSilent                = "Silent"
	ReasonSecretMissing         = "SecretMissing"
	ReasonKubeconfigInvalid     = "KubeconfigInvalid"
	ReasonUnauthorized          = "Unauthorized"
	ReasonForbidden             = "Forbidden"
	ReasonCertificateNotTrusted = "CertificateNotTrusted"
	ReasonNotMeshAPI            = "NotMeshAPI"
	ReasonUnreachable           = "Unreachable"
	ReasonPeerError             = "PeerError"
)

// ErrSilent says that a peer's connection stands, but nothing comes over it.
var ErrSilent = errors.New("the peer has gone silent")

// Reason says, in one word for a condition and in a sentence for a person, why a
// peer did not answer as it should, and what to do.
func Reason(err error) (reason, advice string) {
	var (
		unknownAuthority x509.UnknownAuthorityError
		hostname         x509.HostnameError
		invalid          x509.CertificateInvalidError
		verification     *tls.CertificateVerificationError
		netError         net.Error
	)
	switch {
	case apierrors.IsUnauthorized(err):
		return ReasonUnauthorized, "The peer does not accept the credentials (401): put a kubeconfig that is still valid into the Secret."
	case apierrors.IsForbidden(err):
		return ReasonForbidden, "The peer knows the credentials but does not let them read its exports (403): bind them to ClusterRole mesh-peer in the peer."
	case errors.As(err, &unknownAuthority), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &verification):
		return ReasonCertificateNotTrusted, "The peer's certificate does not fit the kubeconfig: check certificate-authority-data and the server's name."
	case apierrors.IsNotFound(err):
		return ReasonNotMeshAPI, "The address answers, but not with the mesh API: point the kubeconfig to the peer's mesh-apiserver."
	case errors.Is(err, ErrSilent), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netError), apierrors.IsTimeout(err), apierrors.IsServerTimeout(err):
		return ReasonUnreachable, "The peer's mesh API cannot be reached: check that it runs and that its address is open from here."
	}
	return ReasonPeerError, "The peer's mesh API answers with an error."
}

// An example client in Go: submits a job, watches it across restarts of the server, and downloads what it learned.
// ./generate makes the package luthierv1 from ../../proto.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "luthier/clients/go/luthierv1"
)

// How long this program goes on trying to reach a server that was there.
const longestSilence = 10 * time.Minute

func main() {
	log.SetFlags(0)
	server := flag.String("server", "127.0.0.1:7070", "address of luthierd")
	base := flag.String("base-model", "luthier-tiny", "a base model that was imported")
	dataset := flag.String("dataset", "intents", "a dataset that was uploaded")
	steps := flag.Int("steps", 20, "optimizer steps")
	grid := flag.String("grid", "", "FIELD=VALUE,VALUE: a sweep over these values, of which the best is downloaded")
	to := flag.String("to", "adapter", "a folder that does not exist yet")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	spec := &pb.FineTuningSpec{
		BaseModel: *base,
		Dataset:   &pb.DatasetSelection{Dataset: *dataset},
		Training:  &pb.TrainingConfig{MaxSteps: proto.Int32(int32(*steps))},
	}
	if err := run(ctx, *server, spec, *grid, *to); err != nil {
		log.Fatalf("error: %v", err)
	}
}

func run(ctx context.Context, server string, spec *pb.FineTuningSpec, grid, to string) error {
	if _, err := os.Stat(to); err == nil { // known now, and not after hours of training
		return fmt.Errorf("%s exists; give another folder", to)
	}
	// gRPC's own pauses between dials, of up to two minutes, would hide that a server is back.
	pauses := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	conn, err := grpc.NewClient(server, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: 5 * time.Second}),
		// A dead connection is noticed within a minute, also while a watch is silent.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}))
	if err != nil {
		return err
	}
	defer conn.Close()
	models := pb.NewModelServiceClient(conn)
	if grid != "" {
		best, err := runSweep(ctx, pb.NewSweepServiceClient(conn), spec, grid)
		if err != nil {
			return err
		}
		fmt.Println(best.Job, best.Values)
		return download(ctx, models, best.ModelVersion, to)
	}
	jobs := pb.NewFineTuningServiceClient(conn)
	job, err := submit(ctx, jobs, spec)
	if err != nil {
		return err
	}
	fmt.Println(job.Name)
	if job, err = watch(ctx, jobs, job.Name); err != nil {
		return err
	}
	if job.State != pb.FineTuningJob_SUCCEEDED {
		return fmt.Errorf("%s is %s: %s", job.Name, job.State, job.GetFailure().GetMessage())
	}
	return download(ctx, models, job.ModelVersion, to)
}

// The same request id in every try: an answer that was lost on the way is no second job.
func submit(ctx context.Context, jobs pb.FineTuningServiceClient, spec *pb.FineTuningSpec) (*pb.FineTuningJob, error) {
	request := &pb.CreateFineTuningJobRequest{Job: &pb.FineTuningJob{Spec: spec}, RequestId: newRequestID()}
	return withRetries(func() (*pb.FineTuningJob, error) { return jobs.CreateFineTuningJob(ctx, request) })
}

// Calls again while the server is unavailable, four times in all.
func withRetries[Reply any](call func() (Reply, error)) (Reply, error) {
	for tries := 1; ; tries++ {
		reply, err := call()
		if status.Code(err) != codes.Unavailable || tries == 4 {
			return reply, err
		}
		time.Sleep(time.Duration(tries) * 250 * time.Millisecond)
	}
}

// Prints every event once, in order: a stream that breaks is taken up again behind the last one. Returns the job once
// it is over.
func watch(ctx context.Context, jobs pb.FineTuningServiceClient, name string) (*pb.FineTuningJob, error) {
	var job *pb.FineTuningJob
	request := &pb.WatchFineTuningJobRequest{Name: name}
	heard := time.Now()
	read := func() error {
		stream, err := jobs.WatchFineTuningJob(ctx, request)
		for err == nil {
			var message *pb.WatchFineTuningJobResponse
			if message, err = stream.Recv(); err != nil {
				break
			}
			heard = time.Now()
			if message.GetJob() != nil {
				job = message.GetJob()
				// Less than what was printed: the server was restored from a backup, and numbers from there on.
				request.AfterSequence = min(request.AfterSequence, job.LastEventSequence)
			}
			if event := message.GetEvent(); event.GetSequence() > request.AfterSequence {
				request.AfterSequence = event.Sequence
				fmt.Printf("%4d  %-10s  %s\n", event.Sequence, event.Type, event.Message)
			}
		}
		return err
	}
	for {
		err := read()
		switch over := job.GetEndTime() != nil; {
		case ctx.Err() != nil: // Ctrl-C: the job goes on
			return nil, fmt.Errorf("%s goes on; see `luthier job watch`", name)
		case errors.Is(err, io.EOF) && over:
			return job, nil
		case !errors.Is(err, io.EOF) && !isBroken(err), time.Since(heard) > longestSilence:
			return nil, err
		}
		time.Sleep(time.Second)
	}
}

// Whether a stream was broken on the way, by a restart or by the network.
func isBroken(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.Canceled:
		return true
	}
	return false
}

// Writes the files of a version into a new folder, which appears once all of them are verified.
func download(ctx context.Context, models pb.ModelServiceClient, version, to string) error {
	request := &pb.GetModelVersionRequest{Name: version}
	found, err := withRetries(func() (*pb.ModelVersion, error) { return models.GetModelVersion(ctx, request) })
	if err != nil {
		return err
	}
	partial := to + ".partial"
	if err := os.RemoveAll(partial); err != nil { // of another version, of which no file may stay
		return err
	}
	for _, file := range found.Files {
		if !filepath.IsLocal(file.Path) {
			return fmt.Errorf("%s: is no path inside the folder", file.Path)
		}
		if err := fetch(ctx, models, found.Name, file, filepath.Join(partial, file.Path)); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return os.Rename(partial, to)
}

func fetch(ctx context.Context, models pb.ModelServiceClient, version string, file *pb.ModelFile, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	stream, err := models.DownloadModelVersion(ctx, &pb.DownloadModelVersionRequest{Name: version, Path: file.Path})
	if err != nil {
		return err
	}
	hash := sha256.New()
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := io.MultiWriter(out, hash).Write(message.GetChunk().GetData()); err != nil {
			return err
		}
	}
	if found := hex.EncodeToString(hash.Sum(nil)); found != file.Sha256 {
		return fmt.Errorf("received content with SHA-256 %s, expected %s", found, file.Sha256)
	}
	return out.Sync()
}

// A UUID of version 7 (RFC 9562), which begins with the time: the server's index of requests grows at its end.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[6:])
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli())<<16|uint64(binary.BigEndian.Uint16(b[6:8])))
	b[6], b[8] = b[6]&0x0f|0x70, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
